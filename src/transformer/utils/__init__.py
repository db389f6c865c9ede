"""Small helpers that know nothing of Transformers: strict configuration and derived seeds."""
