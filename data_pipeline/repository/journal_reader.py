"""The journal as its readers see it: decoded records, up to what is durable."""

import base64
import collections
import contextlib
import json
import logging
import pathlib
import threading
from collections.abc import Callable

from data_pipeline.files import atomic
from data_pipeline.payloads import records, times
from data_pipeline.repository import segments
from data_pipeline.repository.attempts import Attempts

log = logging.getLogger("webhook")

# Of payloads that a reader gets at once.  As objects they take up to 30 times as much, and a record may have 13 MB.
MOST_BYTES = 2 << 20


class DurablePosition:
    """How far the journal is durable, as the server tells it; readers wait here."""

    def __init__(self, durable: int = 0):
        self.durable = durable
        # Guards `durable`; notified when it moves or the wait is over for good.
        self._changed = threading.Condition()
        self._ended = False

    def advance(self, durable: int) -> None:
        """It is durable up to number `durable`, and never less than before."""
        with self._changed:
            self.durable = max(self.durable, durable)
            self._changed.notify_all()

    def end(self) -> None:
        """Nobody needs to wait any more."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait_beyond(self, number: int, timeout: float | None = None) -> None:
        """Wait until a record behind `number` is durable, or the timeout (s), or the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self.durable > number, timeout)


class SetAside:
    """Records that could not be used, kept whole: a line of JSON each, with the reason, bytes in base64."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.count = 0
        # Both readers come here.
        self._lock = threading.Lock()

    def keep(self, number: int, reason: str, raw: bytes) -> None:
        """Write one down and name it in the log.  Raises OSError."""
        line = {"at": times.utc_now_text(), "record": number, "reason": reason, "raw": base64.b64encode(raw).decode()}
        with self._lock:
            # Durably: the journal lets go of the record once those behind it are in tables and files.
            atomic.append(self.path, json.dumps(line).encode() + b"\n")
            self.count += 1
        log.error("record %d of the journal is set aside in %s: %s", number, self.path.name, ascii(reason))


class Cache:
    """Decoded records that the two readers share, so that a body is parsed once.

    A record has its ticker's whole state in it, most of which is as in the
    one before: that too is parsed once, and there once in memory.
    """

    SIZE = 512
    BYTES = 4 << 20  # of payloads; one reader may be far ahead while the other waits for the database
    TICKERS = 256

    def __init__(self) -> None:
        # Guards all below; both readers come here.
        self._lock = threading.Lock()
        self._records: collections.OrderedDict[int, tuple[records.AnyRecord, int]] = collections.OrderedDict()
        self._last: collections.OrderedDict[str, records.Gex] = collections.OrderedDict()
        self._bytes = 0

    def decode(self, record: segments.Record) -> records.AnyRecord:
        """Raises records.RecordError."""
        with self._lock:
            if (found := self._take(record.number)) is not None:
                return found  # both have it now
            found = records.decode(record.payload)
            if isinstance(found, records.Gex):
                self._share(found)
            self._records[record.number] = found, len(record.payload)
            self._bytes += len(record.payload)
            while len(self._records) > self.SIZE or self._bytes > self.BYTES and len(self._records) > 1:
                self._take(next(iter(self._records)))
        return found

    def _share(self, gex: records.Gex) -> None:
        # What it raises is raised again where the values are used, and the record is set aside there.
        with contextlib.suppress(Exception):
            gex.share(self._last.pop(gex.ticker, None))
            self._last[gex.ticker] = gex
        while len(self._last) > self.TICKERS:
            self._last.popitem(last=False)

    def _take(self, number: int) -> records.AnyRecord | None:
        entry = self._records.pop(number, None)
        if entry is None:
            return None
        self._bytes -= entry[1]
        return entry[0]


class JournalReader:
    """One reader's end of the journal.

    names_damage: whether it is the one that reports what is broken.  bound:
    the number up to which it may read now, to stay near the other reader.
    """

    def __init__(
        self, folder: pathlib.Path, progress: DurablePosition, cache: Cache, aside: SetAside, names_damage: bool
    ):
        self.bound: Callable[[], int] = lambda: progress.durable
        self._folder = folder
        self._progress = progress
        self._cache = cache
        self._aside = aside
        self._names_damage = names_damage
        self._reader: segments.Reader | None = None
        self.full = False  # whether the last `read` ended because it had enough, so that there may be more at once
        self.attempts = Attempts(folder / ("tables.attempt" if names_damage else "files.attempt"))
        self._raw: dict[int, bytes] = {}
        # What was named of the records that are not done yet, as they may be read again: number, and where damage is.
        self._kept: set[tuple[int, str]] = set()

    @property
    def durable(self) -> int:
        """The number up to which the journal is known to be durable."""
        return self._progress.durable

    def wait_beyond(self, number: int, timeout: float | None = None) -> None:
        """See DurablePosition.wait_beyond."""
        self.attempts.rest()
        self._progress.wait_beyond(number, timeout)

    def rest(self) -> None:
        """See Attempts.rest."""
        self.attempts.rest()

    def read(self, after: int, most: int) -> list[tuple[int, records.AnyRecord | None]]:
        """Up to `most` records behind `after`, each with its number; None stands for one that is none of ours, or lost.

        Whoever has done them all goes on behind the last one's number.  Raises OSError.
        """
        self.attempts.rest()
        most = self.attempts.most(after, most)
        if self._reader is None or self._reader.position != after:
            self._reader = segments.Reader(self._folder, after)
        found: list[tuple[int, records.AnyRecord | None]] = []
        self._raw, self._kept = {}, {kept for kept in self._kept if kept[0] > after}
        size = 0
        expected: int | None = after + 1  # None behind damage, which is named itself
        parts = self._reader.read(min(self._progress.durable, self.bound()), most, MOST_BYTES)
        if parts:
            self.attempts.begin(after + 1, self._reader.position)
        for part in parts:
            if isinstance(part, segments.Damage):
                if self._names_damage:
                    place = f"damaged bytes in {part.segment} at {part.offset}"
                    self._keep((part.after + 1, place), place, part.raw)
                expected = None
                continue
            if expected is not None and part.number > expected and self._names_damage:
                self._name_gap(expected, part.number - 1)
            expected = part.number + 1
            self._raw[part.number] = part.payload
            size += len(part.payload)
            if self.attempts.is_deadly(part.number):
                found.append((part.number, None))
                self.set_aside(part.number, f"the writer died on it {self.attempts.deaths} times")
                continue
            try:
                found.append((part.number, self._cache.decode(part)))
            except records.RecordError as problem:
                found.append((part.number, None))
                if self._names_damage:
                    self.set_aside(part.number, str(problem))
        if self._reader.position > (found[-1][0] if found else after):
            found.append((self._reader.position, None))
        self.full = len(parts) >= most or size >= MOST_BYTES
        return found

    def set_aside(self, number: int, reason: str) -> bool:
        """Keep a record of the last `read` that cannot be used, and name it; False if that was done before."""
        return self._keep((number, ""), reason, self._raw.get(number, b""))

    def _name_gap(self, first: int, last: int) -> None:
        if (first, "gap") not in self._kept:
            self._kept.add((first, "gap"))
            log.error("records %d to %d are not in the journal; tables and files go on without them", first, last)

    def _keep(self, what: tuple[int, str], reason: str, raw: bytes) -> bool:
        if what in self._kept:
            return False
        self._aside.keep(what[0], reason, raw)
        self._kept.add(what)
        return True
