"""From an image, a source and a target condition to an image."""
