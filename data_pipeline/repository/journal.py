"""The journal: a payload is acknowledged when its record is here, on disk.

`Journal.append` returns only when the record is durable.  Threads that append
at the same time share one write and one fdatasync: the first of them becomes
the leader and writes for all that wait.  After a failed write or fsync that
descriptor is never used again, since the kernel may have dropped the pages
and would report success next time: everyone who waited is told, what they
had changed is undone, and the next append begins a new segment.  The format
is described in `segments`.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import pathlib
import re
import threading
import uuid
from collections.abc import Callable

from data_pipeline import BridgeError
from data_pipeline.files import atomic
from data_pipeline.repository import segments

log = logging.getLogger("webhook")

# What a build callback returns: the payload, and what to call if it could not be written.
Built = tuple[bytes, Callable[[], None] | None]

# What the readers leave beside the segments: how far tables and files may be.
NOTES = ("files.position", "depth.position", "tables.position")

# Bytes of records that wait to be written; who comes then waits before its record is made.  A record has the ticker's
# whole state in it, so many small requests at once could otherwise need much memory.
MOST_PENDING = 64 << 20


class NotDurable(BridgeError):
    """The record could not be written; nothing of it counts."""


class FolderInUse(BridgeError):
    """Another process writes this journal."""


class _Ticket:
    """One append on its way; its thread waits at `gate`."""

    __slots__ = ("number", "payload", "undo", "gate", "done", "error")

    def __init__(self, number: int, built: Built):
        self.number = number
        self.payload, self.undo = built
        self.gate = threading.Lock()
        self.gate.acquire()
        self.done = False
        self.error: Exception | None = None


class Journal:
    """The writing end.  One process at a time has it, any number of threads use it.

    folder: where the segments lie; segment_bytes: when a new one begins;
    last_link: called, under the lock, for the number that goes into a new
    segment's header; opened_at: the last record's number when it was opened;
    on_durable: called by the leader with the number of the last durable record.
    """

    def __init__(self, folder: pathlib.Path, segment_bytes: int = 16 << 20):
        self.folder = folder
        self.segment_bytes = segment_bytes
        self.last_link: Callable[[], int] = lambda: 0
        self.on_durable: Callable[[int], None] = lambda number: None
        self.id = ""
        self.first_link = 0  # the last history-queue id given out before the last segment
        self.durable = self.opened_at = 0
        self.failures = 0
        self.healthy = True
        self.lost = False  # the folder is no longer at its path; nothing is written any more
        # Guards the numbers, the queue of tickets and `_leading`, and fixes the
        # one order in which state changes and records are numbered.
        self._lock = threading.Lock()
        self._pending: list[_Ticket] = []
        self._pending_bytes = 0
        self._room = threading.Condition(self._lock)  # notified when the pending ones are taken
        self._leading = False
        self._next = 1
        self._fd: int | None = None
        self._path = pathlib.Path()
        self._size = 0
        self._locks: list[int] = []

    def open(self) -> None:
        """Take the folder and find where the journal ends.

        Raises FolderInUse, and OSError where the folder cannot be written.
        """
        atomic.make_folder(self.folder)
        atomic.fsync_folder(self.folder.parent)  # a kill may have come before that when the folder was made
        self._take_locks()
        for made in (f"*{segments.ENDING}", "probe.*"):
            atomic.clean(self.folder, made)
        self.id, end, self.first_link = find_end(self.folder)
        self._sync_end()
        self.durable = max(end, noted_position(self.folder, self.id))
        self.opened_at = self.durable
        if self.durable > end:
            log.error(
                "the journal ends at record %d, tables and files have had record %d: its end is lost; what they have"
                " stays, new records go on behind",
                end,
                self.durable,
            )
        self._next = self.durable + 1
        if segments.list_segments(self.folder) and not read_any_header(self.folder):
            self._write_id()

    def _write_id(self) -> None:
        """Begin a segment, so that the next start finds the id, and readers do not begin anew then."""
        try:
            self._begin_segment(self._next)
        except OSError as problem:
            log.error("the journal's id cannot be written: %a", str(problem))
            self._give_up_segment()

    def _take_locks(self) -> None:
        """On a file, where others see who has it, and on the folder, as anyone may remove a file."""
        self._locks = [
            os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644),
            os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC),
        ]
        try:
            for fd in self._locks:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._release_locks()
            raise FolderInUse(f"another bridge is running on {self.folder.parent}") from None

    def _release_locks(self) -> None:
        for fd in self._locks:
            os.close(fd)
        self._locks = []

    def _sync_end(self) -> None:
        """Make durable what a killed process wrote last: read as part of the journal, it must not go with the power.

        Nobody was told that it is there, so a disk that says no is no reason not to start.
        """
        try:
            for path in segments.list_segments(self.folder)[-1:]:
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    os.fdatasync(fd)
                finally:
                    os.close(fd)
            atomic.fsync_folder(self.folder)
        except OSError as problem:
            log.error("the journal's end cannot be made durable: %a", str(problem))

    @property
    def position(self) -> int:
        """The number of the last record that was given out."""
        return self._next - 1

    def probe(self) -> None:
        """Raise OSError where a new segment could not be written now; leaves nothing behind."""
        path = self.folder / f".probe.{uuid.uuid4().hex}{atomic.ENDING}"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            atomic.write_all(fd, bytes(segments.HEADER_BYTES))
            os.fdatasync(fd)
        finally:
            os.close(fd)
            os.unlink(path)

    def append(self, build: Callable[[], Built]) -> int:
        """Number, write and fsync one record; returns its number when it is durable.

        `build` is called under the lock that fixes the order of all records:
        what it does to state happens in the order of the journal.  It returns
        the payload (UTF-8) and a function that takes its changes back, which
        is called, in reverse order, if the record cannot be made durable.
        Raises NotDurable, or what `build` raises (then nothing is written).
        """
        with self._lock:
            while self._pending_bytes > MOST_PENDING:
                self._room.wait()
            ticket = _Ticket(self._next, build())
            self._next += 1
            self._pending.append(ticket)
            self._pending_bytes += len(ticket.payload)
            lead = not self._leading
            self._leading = True
        if not lead:
            ticket.gate.acquire()
        if not ticket.done:
            self._lead()
        if ticket.error is not None:
            raise NotDurable(f"journal: {ticket.error}") from ticket.error
        return ticket.number

    def _lead(self) -> None:
        """Write what is pending, release those who waited, hand the lead on."""
        with self._lock:
            batch = self._take_pending()
        error = None
        try:
            self._write(batch)
        except Exception as problem:  # Whatever it is, those who wait must hear of it.
            error = problem
        with self._lock:
            if error is None:
                self.durable = batch[-1].number
                self.healthy = True
            else:
                batch = self._fail(batch, error)
            for ticket in batch:
                ticket.done = True
            self._leading = bool(self._pending)
            following = self._pending[0].gate if self._pending else None
        if error is None:
            self.on_durable(batch[-1].number)
        for ticket in batch:
            ticket.gate.release()
        if following is not None:
            following.release()

    def _take_pending(self) -> list[_Ticket]:
        """Under the lock."""
        taken, self._pending, self._pending_bytes = self._pending, [], 0
        self._room.notify_all()
        return taken

    def _fail(self, batch: list[_Ticket], error: Exception) -> list[_Ticket]:
        """Under the lock: nothing after the last durable record counts."""
        batch = batch + self._take_pending()
        for ticket in reversed(batch):
            ticket.error = error
            if ticket.undo is not None:
                ticket.undo()
        self._next = self.durable + 1
        self.failures += len(batch)
        if self.healthy:
            log.error("journal cannot be written, requests are answered with 500: %s", error)
        self.healthy = False
        return batch

    def _write(self, batch: list[_Ticket]) -> None:
        """The leader's part, outside the lock.  Where it raises, the segment is given up."""
        self.check_folder()
        data = b"".join(part for t in batch for part in (segments.record_head(t.number, t.payload), t.payload))
        if self._size >= self.segment_bytes:
            self._close_segment()
        try:
            fd = self._begin_segment(batch[0].number) if self._fd is None else self._fd
            atomic.write_all(fd, data)
            os.fdatasync(fd)
            self._check_it_is_there(fd)
        except Exception:
            self._give_up_segment()
            raise
        self._size += len(data)

    def check_folder(self) -> None:
        """Raise OSError, from then on for good, where the folder was removed or renamed.

        The lock went along with it, so at its path another bridge may have
        made a journal of its own: a segment of ours there would be one of two
        with the same numbers.
        """
        if not self.lost:
            try:
                self.lost = not os.path.samestat(os.fstat(self._locks[-1]), os.stat(self.folder))
            except (FileNotFoundError, NotADirectoryError):
                self.lost = True
        if self.lost:
            raise OSError(errno.ESTALE, f"{self.folder} was removed or renamed")

    def _check_it_is_there(self, fd: int) -> None:
        """Raise OSError where somebody has removed or replaced the segment: what is in it then, nobody will read."""
        try:
            is_there = os.path.samestat(os.fstat(fd), os.stat(self._path))
        except FileNotFoundError:
            is_there = False
        if not is_there:
            raise OSError(errno.ESTALE, f"{self._path.name} was removed or replaced")

    def _begin_segment(self, first: int) -> int:
        path = segments.segment_path(self.folder, first)
        header = segments.SegmentHeader(self.id, first, self.last_link())
        # Renamed when its header is durable: a segment with the same name has
        # no record that counts, but its header may be the last that there is.
        temporary = path.with_name(f".{path.name}{atomic.ENDING}")
        self._fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        self._path = temporary
        atomic.write_all(self._fd, header.encode())
        os.fsync(self._fd)
        os.rename(temporary, path)
        self._path, self._size = path, segments.HEADER_BYTES
        atomic.fsync_folder(self.folder)
        return self._fd

    def _give_up_segment(self) -> None:
        """Close a segment that may lie about what it holds; give back what was not acknowledged."""
        if self._fd is None:
            return
        with contextlib.suppress(OSError):  # The failure is reported already; this only frees space.
            if self._path.name.endswith(segments.ENDING):
                os.ftruncate(self._fd, self._size)
            else:
                os.unlink(self._path)
        with contextlib.suppress(OSError):
            os.close(self._fd)
        self._fd, self._size = None, 0

    def _close_segment(self) -> None:
        fd, self._fd, self._size = self._fd, None, 0
        if fd is not None:
            with contextlib.suppress(OSError):  # everything in it is durable already
                os.close(fd)

    def close(self) -> None:
        """Close the files; no append may be under way or come after."""
        self._close_segment()
        self._release_locks()


def find_end(folder: pathlib.Path) -> tuple[str, int, int]:
    """The journal's id, the number after which a new segment may begin, and the last segment's last link id.

    A new folder gets a new id.  Where the last segment ends in bytes that are
    no record, the numbers those may have had are not used again: the tables
    may already hold a record that was whole when they read it, and would then
    take a new one with the same number for that one and leave it out.  So as
    many numbers are passed over as records without a payload would fit into
    those bytes; too many do no harm, a gap is only named in the log.  Damage
    with whole records behind it costs none: they say how numbers go on.
    """
    found = segments.list_segments(folder)
    if not found:
        return uuid.uuid4().hex, 0, 0
    header = read_any_header(folder)
    if header is None:
        journal = noted_journal(folder)
        log.error(
            "no header of the journal in %s is readable; it goes on under %s id", folder, "its" if journal else "a new"
        )
        header = segments.SegmentHeader(journal or uuid.uuid4().hex, 1, 0)
    last, unknown = segments.first_number(found[-1]) - 1, 0
    reader = segments.Reader(folder, last)
    while parts := reader.read(1 << 62):
        for part in parts:
            if isinstance(part, segments.Record):
                last, unknown = part.number, 0
            else:
                unknown += len(part.raw)
    end = last + unknown // segments.RECORD.size + (unknown > 0)
    return header.journal, end, header.last_link


def read_any_header(folder: pathlib.Path) -> segments.SegmentHeader | None:
    """The newest header that is readable."""
    return next((h for path in reversed(segments.list_segments(folder)) if (h := segments.read_header(path))), None)


def read_notes(folder: pathlib.Path) -> dict[str, tuple[str, int]]:
    """What the readers noted beside the segments, by the note's name: the journal's id, and the last record they have.

    One that is not there, or not readable, is left out: whose notes they are, they look after them.
    """
    found = {}
    for name in NOTES:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            note = json.loads((folder / name).read_bytes())
            if isinstance(note["journal"], str) and isinstance(note["position"], int):
                found[name] = note["journal"], note["position"]
    return found


def noted_position(folder: pathlib.Path, journal: str) -> int:
    """The last record that tables or files have taken from that journal, as far as they noted it; 0 for none."""
    return max((position for whose, position in read_notes(folder).values() if whose == journal), default=0)


def noted_journal(folder: pathlib.Path) -> str:
    """The id of the journal that tables and files were last reading; empty where they do not say, or not the same."""
    ids = {journal for journal, _ in read_notes(folder).values() if re.fullmatch("[0-9a-f]{32}", journal)}
    return ids.pop() if len(ids) == 1 else ""
