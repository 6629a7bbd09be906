"""Pictures of arrays: every function takes arrays and `ax=None`, returns the Axes, and reads and writes no file."""
