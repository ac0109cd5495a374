"""From a loaded model to text: loading, generation, sampling, statistics."""
