"""What could not be moved, or gave way: JSON lines, so that nothing is dropped silently."""

import json
import os
import pathlib
from typing import TextIO


class Report:
    """JSON lines appended to `path`, which is made with the first line; path None only counts.

    A line: `table`, `problem`, `outcome` (`not moved`, `null`, `default`,
    `replaced`), and either `column` and `value` with `rowid` and `key`, or
    the whole `row`.  Bytes are {"hex": …}.
    """

    def __init__(self, path: pathlib.Path | None):
        self.path = path
        self.lines = 0
        self._file: TextIO | None = None

    def add(self, **line: object) -> None:
        self.lines += 1
        if self.path is None:
            return
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a", encoding="utf-8")
        self._file.write(json.dumps(line, default=_shown) + "\n")

    def sync(self) -> None:
        """On disk, before the rows it names are gone."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self.sync()
            self._file.close()
            self._file = None


def _shown(value: object) -> object:
    return {"hex": value.hex()} if isinstance(value, bytes) else str(value)
