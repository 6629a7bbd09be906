"""Everything that is wrong with a plate or a store, found in one pass, as plain values."""
