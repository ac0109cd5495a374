"""Perplexity, speed, and the share of neurons that fire."""
