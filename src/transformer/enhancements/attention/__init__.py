"""Attention: other ways to mix tokens, and other ways to compute the same mixture."""
