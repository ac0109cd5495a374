"""Text to ids and back: vocabularies, pre-tokenizers, tokenizers, stop strings."""
