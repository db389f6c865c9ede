"""Architecture: other ways to put blocks together."""
