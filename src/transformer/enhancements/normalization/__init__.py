"""Normalization: other norms, and other places for them."""
