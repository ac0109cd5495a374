"""The model's formula as nodes, the passes that place them, and the arena of their results."""
