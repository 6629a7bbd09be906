"""Bringing a data set's files here: what its manifest names, from where, whole and verified before it is visible."""
