"""`FilesWriter`: one of the journal's two readers, which keeps the files up with it.

It rewrites views in the background, at most a few times a second and only
where something changed.
"""

import logging
import pathlib
import time
from typing import Any, Protocol

from data_pipeline.background import Background
from data_pipeline.config import DataFolder
from data_pipeline.files import levels
from data_pipeline.files.depth import DepthEvent, DepthPersistor, depth_event
from data_pipeline.files.growing import GrowingFiles
from data_pipeline.files.views import Views, read_latest, spot_line
from data_pipeline.payloads.records import AnyRecord, Gex

log = logging.getLogger("webhook")
INTERVAL = 0.3  # s, between two rewrites of the views
BATCH = 256  # records
MESSAGE_PAUSE = 60.0  # s between two lines about the same trouble


class Source(Protocol):
    """The journal's decoded records, as `repository.journal_reader` reads them."""

    full: bool

    def read(self, after: int, most: int) -> list[tuple[int, AnyRecord | None]]:
        """Up to `most` records behind number `after`; None stands for one that is none of ours, or lost."""

    def wait_beyond(self, number: int, timeout: float | None = None) -> None:
        """Wait until there is a record behind `number`, or the timeout (s)."""

    def set_aside(self, number: int, reason: str) -> bool:
        """Keep a record that cannot be used where it is found."""

    def rest(self) -> None:
        """Something else than records is waited for."""


class FilesWriter(Background):
    """Journal → spot series and views, and events for the DepthPersistor; `stop` brings them up to the journal's end.

    own: how views combine, see TickerSnapshot.
    """

    def __init__(
        self, root: pathlib.Path, source: Source, spots: GrowingFiles, depth: DepthPersistor, own: bool = False
    ):
        super().__init__("FilesWriter")
        self.root = root
        self.source = source
        self.spots = spots
        self.depth = depth
        self.views = Views(root, own)
        self.position = min(spots.position, depth.files.position)
        self.lines = 0
        self.trouble = ""
        self._restored = False
        self._levels = levels.LevelLines()
        self._unlevelled: set[str] = set()
        self._said_full = -MESSAGE_PAUSE
        # What was handed on already, where a step has to be done again.
        self._spotted = self._levelled = spots.position
        self._offered = depth.files.position

    def stats(self) -> dict[str, Any]:
        """position: the last record that is in the files; the rest counts since the start."""
        return {"position": self.spots.position, "views_written": self.views.written, "lines_appended": self.lines}

    def _run(self) -> None:
        while True:
            began = time.monotonic()
            # Looked at before the step: what comes to be in between is for the next one.
            last = self._stopping.is_set()
            try:
                count = self._step(last)
            except Exception as problem:
                # One line, however long it lasts; the name of a temporary file is another one each time.
                trouble = getattr(problem, "strerror", None) or str(problem) or type(problem).__name__
                if trouble != self.trouble:
                    log.error(
                        "files cannot be written, they are behind the journal: %s",
                        ascii(str(problem) or trouble),
                        exc_info=not isinstance(problem, OSError),
                    )
                self.trouble = trouble
                if last:
                    return
                self._stopping.wait(2.0)
                continue
            self.trouble = ""
            if self.source.full or count and last:
                continue
            if last:
                return
            self._stopping.wait(max(0.0, began + INTERVAL - time.monotonic()))
            self.source.wait_beyond(self.position, timeout=2.0)

    def _step(self, last: bool = False) -> int:
        """One batch; returns how many records it had.  last: there will be no other behind an empty one."""
        if not self._restored:
            self.views.restore(read_latest(self.root))
            self._restored = True
        records = self.source.read(self.position, BATCH)
        spot_lines = []
        for number_, record in records:
            try:
                spot_lines += self._take(number_, record)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as problem:
                self.source.set_aside(number_, f"files: {type(problem).__name__}: {problem}")
        if spot_lines:
            for failure in self.spots.append({DataFolder.SPOT_SERIES: b"".join(spot_lines)}).values():
                raise failure
            self.lines += len(spot_lines)
        if records:
            self._spotted = max(self._spotted, records[-1][0])
            self._write_levels(records)
        self.views.write(last and not records)
        if records:
            self.position = records[-1][0]
        # A restart brings the store back from latest.json and the records behind this position.
        if self.views.current and self.position > self.spots.position:
            self.spots.advance(self.position)
        if not records:
            self.spots.settle()
        return len(records)

    def _write_levels(self, records: list[tuple[int, AnyRecord | None]]) -> None:
        """Lines of level files; one that cannot be written is named and left out: tables and depth have its numbers."""
        lines: dict[str, bytes] = {}
        for number_, record in records:
            if isinstance(record, Gex) and number_ > self._levelled:
                for name, line in self._levels.of_record(record).items():
                    lines[name] = lines.get(name, b"") + line
        failed = self.spots.append(lines, levels.HEADS) if lines else {}
        for name, problem in failed.items():
            if name not in self._unlevelled:
                log.error("%s cannot be written, its lines are left out: %s", name, problem)
        self._unlevelled = set(failed)
        self._levelled = max(self._levelled, records[-1][0])

    def _take(self, number_: int, record: AnyRecord | None) -> list[bytes]:
        """Hand a record on to the views and the depth files; returns its spot line, if it has one."""
        line, event = None, DepthEvent(number_)
        if isinstance(record, Gex):
            if record.webhook is None:
                line = spot_line(record) if number_ > self._spotted else None
                event = depth_event(number_, record) if number_ > self._offered else event
            if record.replaces:
                self.views.forget(record.replaces)
            self.views.update(record.loaded, record.at)
        if number_ > self._offered:
            while not self.depth.enqueue(event):
                self.source.rest()
                if time.monotonic() - self._said_full >= MESSAGE_PAUSE:
                    self._said_full = time.monotonic()
                    log.warning("depth queue is full; the files wait for it")
            self._offered = number_
        return [line] if line else []
