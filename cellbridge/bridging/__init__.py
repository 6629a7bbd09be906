"""Bridges between images on the training engine: cells coupled plate by plate, training, judging, and rounds of refinement."""
