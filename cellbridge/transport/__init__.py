"""Which source cell goes with which target cell: costs, couplings whose marginals are checked, and pairs within plates."""
