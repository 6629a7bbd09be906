"""Weights: networks built from plain arguments, and their directories on disk."""
