"""Plates to cells: tables and fields in, a store of single cells out, and batches of them for training."""
