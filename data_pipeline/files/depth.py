"""Depth files: every `/gex` payload as a line of `depth/TICKER/YYYY-MM-DD.jsonl`."""

import json
import logging
import queue
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from data_pipeline.background import Background
from data_pipeline.config import DataFolder
from data_pipeline.files.growing import GrowingFiles
from data_pipeline.files.names import folder_name
from data_pipeline.payloads import times
from data_pipeline.payloads.records import Gex

log = logging.getLogger("webhook")

QUEUE_SIZE = 10_000
PUT_WAIT = 0.1  # s
FLUSH_EVENTS = 50
FLUSH_INTERVAL = 2.0  # s
RETRY_PAUSE = 60.0  # s
RETRIES = 3
RETRY_BYTES = 32 << 20  # of lines that wait for another try; beyond that no new ones are taken from the queue
TROUBLE_PAUSE = 0.5  # s, where even the note of what is to be written cannot be


@dataclass(frozen=True)
class DepthEvent:
    """One record on its way; name (path under DATA_DIR) and line are empty where it has no depth line."""

    number: int
    name: str = ""
    line: bytes = b""


@dataclass
class _Retry:
    due: float
    tries: int
    events: list[DepthEvent] = field(default_factory=list)


def depth_event(number: int, record: Gex) -> DepthEvent:
    """The line of a `/gex` record: its data with timestamp, ticker, endpoint and payload_kind set."""
    data, timestamp = record.data, record.data.get("timestamp")
    sets = {
        "timestamp": record.at if timestamp is None else timestamp,
        "ticker": record.ticker,
        "endpoint": record.endpoint or "",
        "payload_kind": record.kind,
    }
    if data and all(key not in data or data[key] is value or data[key] == value for key, value in sets.items()):
        # The usual case: nothing is replaced, so the text that the table needs too only gets a longer end.
        more = "".join(f', "{key}": {json.dumps(value)}' for key, value in sets.items() if key not in data)
        line = record.data_json[:-1] + more + "}"
    else:
        line = json.dumps({**data, **sets})
    name = f"{DataFolder.DEPTH}/{folder_name(record.ticker)}/{times.day(timestamp, record.at)}.jsonl"
    return DepthEvent(number, name, line.encode("ascii") + b"\n")


class DepthPersistor(Background):
    """Writes depth events in batches; `stop` writes what is queued.

    Flushed at FLUSH_EVENTS or after FLUSH_INTERVAL; a file that cannot be
    written is tried again after RETRY_PAUSE, RETRIES times, and then its
    events go to the dead letters.  `files.position` never passes an event that is
    in neither, so the journal keeps it over a restart.
    """

    def __init__(self, files: GrowingFiles, clock: Callable[[], float] = time.monotonic):
        super().__init__("DepthPersistor")
        self.files = files
        self.clock = clock
        self.enqueued = self.written = self.dropped = self.retried = self.dead_lettered = 0
        self._queue: queue.Queue[DepthEvent | None] = queue.Queue(QUEUE_SIZE)
        self._retries: dict[str, _Retry] = {}
        self._last = files.position
        self.trouble = ""

    def enqueue(self, event: DepthEvent) -> bool:
        """Hand over an event; False if there was no room for PUT_WAIT seconds: it is dropped here, and counted.

        The caller has it in the journal and may offer it again.
        """
        try:
            self._queue.put(event, timeout=PUT_WAIT)
        except queue.Full:
            self.dropped += 1
            return False
        self.enqueued += bool(event.line)  # comparable with `written`
        return True

    def _wake(self) -> None:
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            pass  # it is awake anyway

    def stats(self) -> dict[str, Any]:
        """Counts of events since the start, and how many wait; position: the last record that is done."""
        return {
            "enqueued": self.enqueued,
            "written": self.written,
            "dropped": self.dropped,
            "retried": self.retried,
            "dead_lettered": self.dead_lettered,
            "queue": self._queue.qsize(),
            "position": self.files.position,
        }

    def _run(self) -> None:
        while True:
            batch, ended = self._collect()
            try:
                self._flush_or_put_back(batch)
                self._retry_due(last_chance=ended)
                if not batch:
                    self.files.settle()
                self.trouble = ""
            except Exception as problem:
                if str(problem) != self.trouble:  # one line, however long it lasts
                    log.error(
                        "depth events cannot be written, they wait in the journal: %s",
                        ascii(str(problem)),
                        exc_info=not isinstance(problem, OSError),
                    )
                self.trouble = str(problem)
                if not ended:
                    time.sleep(TROUBLE_PAUSE)
            if ended:
                break

    def _collect(self) -> tuple[list[DepthEvent], bool]:
        """Events for one flush, and whether there are no more to come."""
        if sum(len(event.line) for waiting in self._retries.values() for event in waiting.events) > RETRY_BYTES:
            self._stopping.wait(TROUBLE_PAUSE)  # what stays in the queue is in the journal
            return [], self._stopping.is_set()
        batch: list[DepthEvent] = []
        lines = 0
        until = self.clock() + FLUSH_INTERVAL
        while lines < FLUSH_EVENTS and len(batch) < QUEUE_SIZE:
            stopping = self._stopping.is_set()
            try:
                wait = 0 if stopping else max(0.0, until - self.clock())
                event = self._queue.get(timeout=wait) if wait else self._queue.get_nowait()
            except queue.Empty:
                return batch, stopping and not batch
            if event is not None:
                if not batch:
                    until = self.clock() + FLUSH_INTERVAL
                batch.append(event)
                lines += bool(event.line)
        return batch, False

    def _flush_or_put_back(self, batch: list[DepthEvent]) -> None:
        try:
            self._flush(batch)
        except Exception:
            # The note could not be written, and so nothing was: the events stay first in the queue.
            with self._queue.mutex:
                self._queue.queue.extendleft(reversed(batch))
            raise

    def _flush(self, batch: list[DepthEvent]) -> None:
        grouped: dict[str, list[DepthEvent]] = {}
        for event in batch:
            if event.line:
                grouped.setdefault(event.name, []).append(event)
        # Behind those that wait for another try, to keep the order.
        behind = {name: grouped.pop(name) for name in list(grouped) if name in self._retries}
        failed = self.files.append({n: b"".join(e.line for e in events) for n, events in grouped.items()})
        for name, events in behind.items():
            self._retries[name].events.extend(events)
        for name, events in grouped.items():
            if name in failed:
                log.error("depth file %s cannot be written, next try in %d s: %s", name, RETRY_PAUSE, failed[name])
                self._retries[name] = _Retry(self.clock() + RETRY_PAUSE, 0, events)
            else:
                self.written += len(events)
        if batch:
            self._last = batch[-1].number
        if not self._retries:
            self.files.advance(self._last)

    def _retry_due(self, last_chance: bool) -> None:
        for name, waiting in list(self._retries.items()):
            if not last_chance and self.clock() < waiting.due:
                continue
            self.retried += 1
            failed = self.files.append({name: b"".join(e.line for e in waiting.events)})
            if not failed:
                self.written += len(waiting.events)
            elif waiting.tries + 1 < RETRIES:
                waiting.tries += 1
                waiting.due = self.clock() + RETRY_PAUSE
                continue
            elif not self._dead_letter(name, waiting.events, failed[name]):
                continue
            del self._retries[name]
        if not self._retries:
            self.files.advance(self._last)

    def _dead_letter(self, name: str, events: list[DepthEvent], problem: OSError) -> bool:
        lines = [json.dumps({"file": name, "error": str(problem), "event": json.loads(e.line)}) for e in events]
        if self.files.append({DataFolder.DEAD_LETTERS: "".join(f"{line}\n" for line in lines).encode()}):
            return False
        self.dead_lettered += len(events)
        log.error("%d depth events for %s are in %s: %s", len(events), name, DataFolder.DEAD_LETTERS, problem)
        return True
