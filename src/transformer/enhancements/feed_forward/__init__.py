"""Feed-forward: other ways to transform each token by itself."""
