"""Predictors for a model of one's own: what they are trained on, the training, and what it gave."""
