"""What DuckDB or the system says, as the one line that the command line prints."""

from collections.abc import Iterator
from contextlib import contextmanager

import duckdb

from data_pipeline import BridgeError
from data_pipeline.repository.database import first_line


@contextmanager
def one_line() -> Iterator[None]:
    """Raise their errors as a BridgeError of one line."""
    try:
        yield
    except (duckdb.Error, OSError) as problem:
        raise BridgeError(first_line(problem)) from problem
