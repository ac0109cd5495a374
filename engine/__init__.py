"""The engine: from a model file to text, a folder for each of its jobs."""
