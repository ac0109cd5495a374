"""What a model file holds: hyperparameters, weights by role, well-known shapes."""
