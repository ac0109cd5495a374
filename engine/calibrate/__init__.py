"""Thresholds for a model without exact zeros: which neurons matter, and what leaving out the others costs."""
