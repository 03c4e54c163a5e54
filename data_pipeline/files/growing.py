"""Files that only grow, with each record's line exactly once, whatever crashes.

Before a batch is appended, a note says how far the journal is in the files
and how long each file was at that point.  After a crash the files are cut
back to those lengths and the journal is read again from there.  The note is
JSON: `{"journal": id, "position": number, "lengths": {path under DATA_DIR: bytes}}`.

What would break, were it done otherwise: with lines written before the note, a
crash between the two leaves lines that nobody knows to cut, and they come
twice; with the note moved on before its lines are synced, the journal may let
go of records whose lines a power cut takes; and with the lengths of a second
append noted over those of the first, while the position has not moved, the cut
would leave the first append's lines and write them again.
"""

import contextlib
import json
import logging
import os
import pathlib
import sys
from collections.abc import Mapping
from types import MappingProxyType

from data_pipeline.files import atomic

log = logging.getLogger("webhook")

NO_HEADS: Mapping[str, bytes] = MappingProxyType({})


class GrowingFiles:
    """The growing files of one reader of the journal.  For one thread.

    root: DATA_DIR; note: where the note lies; journal: the journal's id.
    `position` is the last record whose lines are all on disk, `noted` the one
    that a restart would begin after.
    """

    def __init__(self, root: pathlib.Path, note: pathlib.Path, journal: str):
        self.root = root
        self.note = note
        self.journal = journal
        self.position = 0
        self.noted = 0
        self._lengths: dict[str, int] = {}
        self._torn: dict[
            str, int
        ] = {}  # files that are too long and could not be cut back, and how long they should be

    def open(self) -> int:
        """Undo what a crash left half done; returns the position to go on after.  Raises OSError."""
        self.position, lengths = read_note(self.note, self.journal)
        self.noted = self.position
        if self.position:  # who was killed may have been about to: the journal lets go of what is noted
            atomic.fsync_folder(self.note.parent)
        for name, length in lengths.items():
            self._torn[name] = length
            try:
                self._cut_back(name)
            except OSError as problem:  # one file out of reach is no reason to leave the others
                log.error("%s cannot be cut back to %d bytes now: %s", name, length, problem)
        return self.position

    def append(self, lines: dict[str, bytes], heads: Mapping[str, bytes] = NO_HEADS) -> dict[str, OSError]:
        """Append to files (by path under root) and fsync them; what failed is as it was before.

        heads: by the ending of a file's name, what it begins with where it is
        empty.  Raises OSError where the note itself cannot be written; then nothing
        was appended.  `advance` is to follow when all up to a record is done.
        """
        failed, lengths = {}, {}
        for name in lines:
            try:
                lengths[name] = min(_size(self.root / name), self._torn.get(name, sys.maxsize))
            except OSError as problem:
                failed[name] = problem
        # A file that the note already names keeps the length that belongs to the noted position.
        if lengths.keys() - self._lengths.keys():
            self._write_note({**lengths, **self._lengths})
        for name, before in lengths.items():
            try:
                head = b"" if before else heads.get(pathlib.PurePath(name).suffix, b"")
                self._append(name, head + lines[name], before)
            except OSError as problem:
                failed[name] = problem
        return failed

    def advance(self, position: int) -> None:
        """All lines up to `position` are in the files; noted with the next append or `settle`."""
        self.position = position
        self._lengths = {}

    def settle(self) -> None:
        """Note the position now, if it is not noted yet.  Raises OSError."""
        if self.noted != self.position:
            self._write_note({})

    def _append(self, name: str, content: bytes, before: int) -> None:
        self._cut_back(name)
        try:
            atomic.append(self.root / name, content)
        except OSError:
            # All of it comes again, so nothing of it may stay; if that fails too, the next attempt begins with it.
            self._torn[name] = before
            with contextlib.suppress(OSError):
                self._cut_back(name)
            raise

    def _cut_back(self, name: str) -> None:
        path = self.root / name
        if name in self._torn and path.is_file() and _size(path) > self._torn[name]:
            os.truncate(path, self._torn[name])
        self._torn.pop(name, None)

    def _write_note(self, lengths: dict[str, int]) -> None:
        note = {"journal": self.journal, "position": self.position, "lengths": {**self._torn, **lengths}}
        atomic.replace(self.note, json.dumps(note).encode())
        self._lengths, self.noted = lengths, self.position


def read_note(path: pathlib.Path, journal: str) -> tuple[int, dict[str, int]]:
    """Position and lengths of a note; (0, {}) where there is none for this journal.  Raises OSError.

    One that is not readable is moved aside and named: lines that the journal
    still has may then come twice, which is better than never again.
    """
    try:
        note = json.loads(path.read_bytes())
        return (int(note["position"]), dict(note["lengths"])) if note["journal"] == journal else (0, {})
    except FileNotFoundError:
        return 0, {}
    except (ValueError, KeyError, TypeError) as problem:
        aside = path.with_name(f"{path.name}.damaged")
        log.error("%s is not readable and now lies at %s: %a", path, aside.name, str(problem))
        path.replace(aside)
        return 0, {}


def _size(path: pathlib.Path) -> int:
    return path.stat().st_size if path.exists() else 0
