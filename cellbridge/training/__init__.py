"""The training engine: receives a loss and batches, and knows no method."""
