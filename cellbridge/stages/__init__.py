"""Stages: each reads a config and files, calls parts, and writes a run directory or a store."""
