"""Moving over from the original's SQLite file, and back.

What lives here may not know: the HTTP server.
"""
