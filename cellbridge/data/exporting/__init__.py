"""Cells on their way out: into the files that other communities open."""
