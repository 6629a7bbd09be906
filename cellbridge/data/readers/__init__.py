"""One reader per community format: tables in, rows with checked paths out."""
