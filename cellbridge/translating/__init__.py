"""What `translate` wires together: its settings, the methods, cells to their translations, the store they go to, and ways to look at."""
