"""A model behind HTTP, as OpenAI's clients expect it: requests in, answers out, one model, one queue."""
