"""State-space models: linear recurrences over a state of fixed size, instead of attention."""
