"""Journal → database: all that is new in one transaction, in short sessions.

How far it got is written in the same transaction, so after a crash each
record is applied exactly once.  While another process has the file, nothing
is lost but time.
"""

import contextlib
import json
import logging
import pathlib
import time
from collections.abc import Callable, Iterable
from typing import Any

import duckdb
import pyarrow

from data_pipeline import BridgeError
from data_pipeline.background import Background
from data_pipeline.files import atomic
from data_pipeline.payloads.records import AnyRecord
from data_pipeline.repository import upserts
from data_pipeline.repository.database import (
    Database,
    DatabaseBusy,
    DatabaseDamaged,
    IndexesRebuilt,
    first_line,
    last_id,
    note_position,
    position,
    queue_counts,
)
from data_pipeline.repository.journal_reader import JournalReader
from data_pipeline.repository.rows import LEFT_OUT, Rows

log = logging.getLogger("webhook")

Numbered = list[tuple[int, AnyRecord]]

BATCH = 128  # records a session
GAP = 0.06  # s that the file is free between two sessions, however much there is to do
CHECKPOINT_INTERVAL = 60.0  # s, at the most, between a commit and its checkpoint
CHECKPOINT_BYTES = 2 << 20  # of write-ahead log; each opening of the file reads it
BUSY_WAIT = 1.0  # s to try for before it is reported
MESSAGE_PAUSE = 60.0  # s between two lines about the same trouble

# What DuckDB and Arrow raise where it is the record's fault, and not the disk's or the file's.
UNLOADABLE = (
    duckdb.DataError,
    duckdb.IntegrityError,
    duckdb.NotSupportedError,
    duckdb.InvalidInputException,
    pyarrow.ArrowException,
    ValueError,
    TypeError,
    OverflowError,
)


class DatabaseChanged(BridgeError):
    """Somebody put another file in its place."""


class Loader(Background):
    """The only writer of the database while the server runs; `stop` loads what there is.

    source: the journal's decoded records; journal: its id; interval: least
    seconds between the beginnings of two sessions; views: returns the SQL that
    makes the views, run before the first records; note: the file that says how
    far the tables may be, so that a journal that lost its end gives out no
    number again; end: the journal's last record when it was opened; rows: makes
    what takes a batch's rows.
    Three numbers of records that are easily mixed up:
    `position`: all up to it are applied.  None from an exception until the
    database was asked: its commit may have held, and from a guess a batch
    would be applied twice, or never.  Before each batch it is compared with
    the database, which another one may have been put in the place of.
    `safe`: all up to it are in the file itself, by a checkpoint.  Only that
    may leave the journal: what is behind it is in DuckDB's log alone, which is
    moved aside where it is damaged, and is then loaded from the journal again.
    `loaded`: what was last known of `position`; for those who look on.
    """

    def __init__(
        self,
        database: Database,
        source: JournalReader,
        journal: str,
        interval: float,
        views: Callable[[], Iterable[str]] = tuple,
        note: pathlib.Path | None = None,
        end: int = 0,
        rows: Callable[[], Rows] = Rows,
    ):
        super().__init__("Loader")
        self.rows = rows
        self.database = database
        self.source = source
        self.journal = journal
        self.interval = interval
        self.views = views
        self.note = note
        self.end = end
        self.position: int | None = None
        self.safe = 0
        self.loaded = 0
        self.sessions = self.failed = self.records = self.busy = self.set_aside = 0
        self.queue: dict[str, int] = {}  # links by status, as of the last session that looked
        self.last_session = 0.0
        self.last_link = 0
        self.on_links: Callable[[], None] = lambda: None
        self.trouble = ""
        self.left_out = dict.fromkeys(LEFT_OUT, 0)
        self._named: set[tuple[str, str]] = set()
        self._said = -MESSAGE_PAUSE
        self._view_trouble = ""
        self._checkpoint_due = 0.0
        self._closed = 0.0

    def stats(self) -> dict[str, Any]:
        """Counts since the start; position: the last record that is in the tables; see README, `/status`."""
        return {
            "position": self.loaded,
            "sessions": self.sessions,
            "failed_sessions": self.failed,
            "records": self.records,
            "last_link": self.last_link,
            "busy_retries": self.busy,
            "set_aside": self.set_aside,
            "left_out": dict(self.left_out),
            "last_session_seconds": self.last_session,
            "trouble": self.trouble,
            "queue": self.queue,
        }

    def _run(self) -> None:
        while True:
            began = time.monotonic()
            # Looked at before the step: what comes to be in between is for the next one.
            last = self._stopping.is_set()
            more = self._try_step()
            if more:
                continue
            if self.trouble:
                time.sleep(GAP)
            elif last and self.safe == self.position:
                return
            elif not last:
                self._stopping.wait(max(GAP, began + self.interval - time.monotonic()))
                due = None if self.safe == self.position else max(0.0, self._checkpoint_due - time.monotonic())
                self.source.wait_beyond(self.position or 0, due)

    def _try_step(self) -> bool:
        try:
            more = self._step()
        except Exception as problem:
            # What got in is for the database to say: a commit may have held although its session failed.
            self.position = None
            self._report(problem)
            return False
        self.trouble = ""
        return more

    def _step(self) -> bool:
        """One session; True if there is more at once."""
        if self.position is None:
            self._begin()
        assert self.position is not None
        records = self.source.read(self.position, BATCH)
        if records or self.safe != self.position and self._must_checkpoint():
            self._load(records)
        # At the end only an empty batch says that there is no more: one with damage in it may have few records.
        return self.source.full or bool(records) and self._stopping.is_set()

    def _must_checkpoint(self) -> bool:
        return (
            self._stopping.is_set()
            or time.monotonic() >= self._checkpoint_due
            or self.database.log_bytes >= CHECKPOINT_BYTES
        )

    def _begin(self) -> None:
        """Make the tables if they are missing, and see how far they are."""
        with self.database.session(BUSY_WAIT) as con:
            found = self._where_to_begin(con)
            self.queue = queue_counts(con)
            self.last_link = last_id(con, "gex_history_queue")
            self._make_views(con)
        self.position = self.safe = self.loaded = found

    def _where_to_begin(self, con: duckdb.DuckDBPyConnection) -> int:
        found = position(con, self.journal)
        if found > self.source.durable:
            # An older copy of the journal; what came since it was opened is new, and has numbers that were used before.
            log.error(
                "the tables have record %d, and the journal ended at %d when it was opened; they go on behind that",
                found,
                self.end,
            )
            found = self.end
            note_position(con, self.journal, found)
        return found

    def _make_views(self, con: duckdb.DuckDBPyConnection) -> None:
        try:
            for statement in self.views():
                con.execute(statement)
        except (duckdb.Error, OSError, ValueError) as problem:  # a broken file of the lake holds up no payload
            if str(problem) != self._view_trouble:  # one line, however often it is tried
                log.error("a view on the lake cannot be made: %a", first_line(problem))
            self._view_trouble = str(problem)

    def _load(self, records: list[tuple[int, AnyRecord | None]]) -> None:
        assert self.position is not None
        kept: Numbered = []
        rows = self.rows()
        for number, record in records:
            if record is not None and self._add(rows, number, record):
                kept.append((number, record))
        upto = records[-1][0] if records else self.position
        if self.safe == self.position:
            self._checkpoint_due = time.monotonic() + CHECKPOINT_INTERVAL
        checkpoint = self._must_checkpoint()
        if not self._stopping.is_set():  # the gap; what is above was done in it
            time.sleep(max(0.0, self._closed + GAP - time.monotonic()))
        began = time.monotonic()
        self._note(upto)
        self.source.attempts.rest()  # who is ended while another process has the database did not die of a record
        with self.database.session(BUSY_WAIT, checkpoint) as con:
            if records:
                self.source.attempts.resume()
            if position(con, self.journal) != self.position:
                raise DatabaseChanged("the database is not the one that was here before")
            if records:
                try:
                    self._apply(con, rows, upto)
                except UNLOADABLE as problem:
                    self._apply_halves(con, kept, problem)
                    self._apply(con, self.rows(), upto)
            self.last_link = last_id(con, "gex_history_queue")
            if checkpoint or rows.links:
                self.queue = queue_counts(con)
        self.source.attempts.rest()
        self._closed = time.monotonic()
        self.position = self.loaded = upto
        if checkpoint:
            self.safe = upto
        self.sessions += 1
        self.records += len(records)
        self._count_left_out(rows)
        if rows.links:
            self.on_links()
        self.last_session = time.monotonic() - began
        log.debug("loaded %d records in %.0f ms", len(records), 1e3 * self.last_session)

    def _count_left_out(self, rows: Rows) -> None:
        for reason, ticker in rows.left_out:
            self.left_out[reason] += 1
            if (reason, ticker) not in self._named:
                self._named.add((reason, ticker))
                log.warning(
                    "a payload of %a %s; further ones of this ticker are only counted", ticker, LEFT_OUT[reason]
                )

    def _note(self, upto: int) -> None:
        """Before the tables have it, so that a journal that lost its end gives out no number that they know.

        Not synced: a power cut cuts nothing durable off the journal.
        """
        if self.note is not None and upto != self.position:
            note = {"journal": self.journal, "position": upto}
            atomic.replace(self.note, json.dumps(note).encode(), durable=False)

    def _add(self, rows: Rows, number: int, record: AnyRecord) -> bool:
        try:
            rows.add(record)
        except Exception as problem:  # whatever a payload can do to us, the next one must get in
            self._put_aside(number, problem)
            return False
        return True

    def _apply(self, con: duckdb.DuckDBPyConnection, rows: Rows, upto: int) -> None:
        con.execute("BEGIN")
        try:
            upserts.apply(con, rows)
            note_position(con, self.journal, upto)
            con.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(duckdb.Error):  # a COMMIT that failed has rolled back already
                con.execute("ROLLBACK")
            raise

    def _apply_halves(self, con: duckdb.DuckDBPyConnection, records: Numbered, problem: Exception) -> None:
        """Some record of these cannot be loaded: find it, and load the others."""
        if len(records) <= 1:
            for number, _ in records:
                self._put_aside(number, problem)
            return
        middle = len(records) // 2
        for half in (records[:middle], records[middle:]):
            rows = self.rows()
            for _, record in half:
                rows.add(record)
            try:
                self._apply(con, rows, half[-1][0])
            except UNLOADABLE as again:
                self._apply_halves(con, half, again)

    def _put_aside(self, number: int, problem: Exception) -> None:
        self.set_aside += self.source.set_aside(number, f"{type(problem).__name__}: {first_line(problem)}")

    def _report(self, problem: Exception) -> None:
        """A line at most once a minute; the records wait in the journal."""
        self.failed += 1
        self.trouble = first_line(problem)
        if isinstance(problem, IndexesRebuilt):  # the database has said so, and the next try will do
            return
        if isinstance(problem, DatabaseBusy):
            self.busy += 1
        elif isinstance(problem, DatabaseDamaged) and self._move_aside(problem):
            return
        if time.monotonic() - self._said >= MESSAGE_PAUSE:
            self._said = time.monotonic()
            unforeseen = not isinstance(problem, (DatabaseBusy, DatabaseChanged, duckdb.Error, OSError))
            log.warning(
                "the database cannot be written now, records wait in the journal: %s",
                ascii(self.trouble),
                exc_info=unforeseen,
            )

    def _move_aside(self, damage: DatabaseDamaged) -> bool:
        try:
            aside = self.database.move_aside(damage)
        except OSError as problem:
            self.trouble += f"; it cannot be moved aside: {problem}"
            return False
        what = "database's write-ahead log" if aside.suffix == ".wal" else "database"
        log.error(
            "the %s is damaged and now lies at %s; the journal is loaded again as far as it goes: %s",
            what,
            aside,
            ascii(self.trouble),
        )
        return True
