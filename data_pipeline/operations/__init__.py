"""What the bridge says of itself: logs, systemd, watchdog, checks, who holds the database.

What lives here may not know: what a payload causes.
"""
