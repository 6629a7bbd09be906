"""Translators that every model must beat."""
