"""`latest.json` and the views once more, where they are lost or damaged: nothing else is ever repaired.

`latest.json` is made from the journal, and for older tickers from the tables.
"""

import json
import pathlib
from collections.abc import Collection
from contextlib import suppress

from data_pipeline.config import DataFolder
from data_pipeline.files.names import folder_name
from data_pipeline.files.views import Views, read_latest
from data_pipeline.payloads import records, times
from data_pipeline.payloads.store import KINDS, SnapshotStore, TickerSnapshot
from data_pipeline.repository import segments

DATABASE_WAIT = 10.0  # s

# The last row of each kind of each ticker, oldest first.
LAST_ROWS = f"""
    SELECT ticker, payload_kind, endpoint, received_at, raw_payload_json FROM gex_bridge_snapshots
    WHERE rowid IN (
        SELECT max_by(rowid, timestamp) FROM gex_bridge_snapshots
        WHERE payload_kind IN {KINDS} GROUP BY ticker, payload_kind
    )
    ORDER BY timestamp, received_at
"""


def latest_and_views(root: pathlib.Path, database: pathlib.Path, folders: Collection[str], own: bool) -> None:
    """Write latest.json anew if it cannot be read (what it was is moved aside), and the views in `folders`.

    A ticker that the journal's segments still name is exactly as it was.  Of
    the others the tables know the last payload of each kind, as long as no
    other kind had the same timestamp and endpoint.  What cannot be written is
    named in the log.  Raises OSError.
    """
    snapshots = read_latest(root)
    missing = not DataFolder(root).latest.exists()
    if missing:
        snapshots = _remembered(root, database)
    views = Views(root, own)
    views.restore(snapshots)
    for snapshot in snapshots:
        if missing or folder_name(snapshot.ticker) in folders:
            views.update(snapshot, times.utc_now_text())
    views.write(last=True)


def _remembered(root: pathlib.Path, database: pathlib.Path) -> list[TickerSnapshot]:
    store = SnapshotStore(TickerSnapshot)
    _from_tables(store, database)
    _from_journal(store, DataFolder(root).journal)
    return list(store.tickers())


def _from_tables(store: SnapshotStore[TickerSnapshot], path: pathlib.Path) -> None:
    # Imported here: it is heavy.
    import duckdb

    from data_pipeline.repository import database, foreign_file

    rows = []
    unreadable = (duckdb.Error, database.DatabaseBusy, database.DatabaseDamaged, foreign_file.NotADatabase)
    if path.exists():
        with suppress(*unreadable), database.Database(path).reading(DATABASE_WAIT) as con:
            rows = con.execute(LAST_ROWS).fetchall()
    for ticker, kind, endpoint, received_at, raw in rows:
        with suppress(ValueError, TypeError, RecursionError):
            data = json.loads(raw)
            store.put(store.get(ticker).merged(kind, data, None if endpoint == "unknown" else endpoint, received_at))


def _from_journal(store: SnapshotStore[TickerSnapshot], folder: pathlib.Path) -> None:
    found = segments.list_segments(folder)
    reader = segments.Reader(folder, segments.first_number(found[0]) - 1 if found else 0)
    while part := reader.read(1 << 62):
        for each in part:
            with suppress(records.RecordError, ValueError, KeyError, RecursionError):
                if isinstance(each, segments.Record) and isinstance(
                    record := records.decode(each.payload), records.Gex
                ):
                    store.put(record.loaded)
