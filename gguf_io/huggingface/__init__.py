"""Reading directories as Hugging Face has them: configs, weights, tokenizers, by family."""
