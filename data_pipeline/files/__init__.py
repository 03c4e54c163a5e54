"""How files are written: atomically, or growing and cut back; the views of the store and the depth files.

What lives here may not know: the database, HTTP.
"""
