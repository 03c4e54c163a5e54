"""What was SQLite: a journal that acknowledges, and a DuckDB file that is read.

What lives here may not know: HTTP.
"""
