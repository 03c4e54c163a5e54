"""What a payload means: validation, the last of each kind, journal records, trades, times and values.

What lives here may not know: disk, HTTP, SQL.
"""
