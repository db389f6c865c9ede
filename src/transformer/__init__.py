"""Transformer From Scratch: the Transformer and its modern family, each idea written once and proved."""
