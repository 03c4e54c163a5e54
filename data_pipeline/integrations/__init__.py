"""Everything that leaves the machine: GEXBot, Discord, the dashboard.  Its modules do not know each other.

What lives here may not know: the database, the HTTP server.
"""
