"""A link becomes a file, and the file goes into the lake: queue, download, importer, download command.

What lives here may not know: the HTTP server.
"""
