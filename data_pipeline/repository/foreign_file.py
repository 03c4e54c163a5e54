"""A first look at the file at the database's path, before DuckDB has it."""

import pathlib

from data_pipeline import BridgeError

DUCKDB_OFFSET, DUCKDB = 8, b"DUCK"
SQLITE = b"SQLite format 3\0"


class NotADatabase(BridgeError):
    """The file is not ours; the text says what to do."""


def refuse_foreign_file(path: pathlib.Path, ours: bool = False) -> None:
    """Raise NotADatabase for a file that is there and is no DuckDB database.

    ours: a bridge has used that path; then a file that has lost even its
    magic bytes is a damaged one, and for others to deal with.
    Never in a process that has the database open: closing this descriptor
    would drop DuckDB's lock.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except FileNotFoundError:
        return
    if head == SQLITE:
        raise NotADatabase(f"{path} is an SQLite file; move it elsewhere and run: gex-bridge migrate FILE")
    if not ours and head[DUCKDB_OFFSET : DUCKDB_OFFSET + 4] != DUCKDB:
        raise NotADatabase(f"{path} is not a DuckDB database; move it elsewhere and start again")
