"""What was SQLite: a journal that acknowledges, and a DuckDB file that is read."""
