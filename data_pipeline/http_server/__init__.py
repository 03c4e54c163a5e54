"""Bytes become one whole request, and a request gets its answer.

What lives here may not know: files, the database.
"""
