"""The lake: closed days of history as Parquet files that any engine reads.

    lake/snapshots/ticker=SPX/endpoint=gex_zero/date=2025-11-14/part-0.parquet
    lake/strikes/ticker=SPX/endpoint=gex_zero/date=2025-11-14/part-0.parquet

Each file has the live table's columns (`repository/schema.py`) and `ts`, the
row's time as a UTC timestamp in microseconds, and is sorted by timestamp (and
strike).  A partition is one file of a fixed name, replaced by a rename: who
lists the folder sees each day exactly once, whole, at any moment.
"""

from data_pipeline.lake.layout import LakeDamaged, LakeNameError, Partition, partitions
from data_pipeline.lake.read import scan_snapshots, scan_strikes
from data_pipeline.lake.views import view_statements

__all__ = [
    "LakeDamaged",
    "LakeNameError",
    "Partition",
    "partitions",
    "scan_snapshots",
    "scan_strikes",
    "view_statements",
]
