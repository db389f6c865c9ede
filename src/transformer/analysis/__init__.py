"""Looking at models from outside: what goes on inside them, and what they cost."""

from .taps import trace

__all__ = ["trace"]
