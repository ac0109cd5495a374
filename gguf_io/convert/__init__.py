"""Making GGUF files: from directories, and from GGUF files to another type."""
