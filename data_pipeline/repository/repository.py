"""`Repository`: what the rest of the server sees of journal, loader and DuckDB.

It appends, and returns when the record is durable; everything else happens
in the writer, a process of its own with a lower priority: it reads the
journal and writes tables and files.  So the server never waits for DuckDB,
and a request never for a file.
"""

import contextlib
import logging
import pathlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from data_pipeline.config import Settings
from data_pipeline.files.growing import read_note
from data_pipeline.payloads import records
from data_pipeline.repository import foreign_file, segments
from data_pipeline.repository.journal import Built, Journal
from data_pipeline.repository.writer_process import WriterProcess

log = logging.getLogger("webhook")

WATCH_INTERVAL = 1.0  # s, between two looks at whether the folder is still ours


class Repository:
    """The journal, and the writer process behind it."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.folder: pathlib.Path = settings.folder.journal
        self.journal = Journal(self.folder)
        self.journal.last_link = lambda: self._last_link
        self._last_link = 0  # the last history-queue id given out; changed under the journal's lock
        self.writer = WriterProcess(settings, self.journal)
        # Called once, by a thread of its own, when the folder is lost: the process is to end.
        self.on_lost: Callable[[], None] = lambda: None
        self._stopping = threading.Event()

    def open(self) -> None:
        """Take the data folder.  Raises FolderInUse, NotADatabase, OSError."""
        has_journal = bool(segments.list_segments(self.folder))
        foreign_file.refuse_foreign_file(self.settings.database, ours=has_journal)
        self.journal.open()
        self._last_link = self.journal.first_link
        if not has_journal and self.settings.database.exists():
            self._last_link = self.writer.ask_last_link()

    def append(self, build: Callable[[], Built]) -> int:
        """See Journal.append."""
        return self.journal.append(build)

    def append_link(self, make: Callable[[int], bytes]) -> int:
        """Append the record of a history link, which `make` returns for the id that it gets; returns that id.

        Ids count up from 1 and are never given out twice, but for one whose
        record could not be written.  Raises as `append`.
        """
        given: list[int] = []

        def build() -> Built:
            before = self._last_link
            # A migration may have brought higher ones into the table meanwhile; the loader saw them a while ago.
            given.append(max(before, self.writer.report.get("loader", {}).get("last_link", 0)) + 1)
            payload = make(given[0])
            self._last_link = given[0]
            return payload, lambda: self._take_back(before)

        self.journal.append(build)
        return given[0]

    def _take_back(self, last_link: int) -> None:
        self._last_link = last_link

    def replay(self) -> Iterator[object]:
        """The records that the files may not show yet, in order, decoded; and those of the last segment.

        To be gone through before the first link gets its id: the last ones are in there.
        """
        found = segments.list_segments(self.folder)
        if not found:
            return
        after = min(read_note(self.folder / "files.position", self.journal.id)[0], segments.first_number(found[-1]) - 1)
        reader = segments.Reader(self.folder, after)
        while part := reader.read(self.journal.durable):
            for record in part:
                if isinstance(record, segments.Record):
                    try:
                        decoded = records.decode(record.payload)
                    except records.RecordError as problem:
                        log.error("record %d of the journal is none of ours: %a", record.number, str(problem))
                        continue
                    if isinstance(decoded, records.Link):
                        self._last_link = max(self._last_link, decoded.id)
                    yield decoded

    def start(self) -> None:
        """Start the writer.  Where it dies, it is started again."""
        self.journal.on_durable = self.writer.tell
        self.writer.start()
        threading.Thread(target=self._watch_folder, name="FolderWatch", daemon=True).start()

    @property
    def lost(self) -> bool:
        """Whether the journal's folder was removed or renamed under us; nothing is acknowledged any more."""
        return self.journal.lost

    def _watch_folder(self) -> None:
        while not self._stopping.wait(WATCH_INTERVAL):
            with contextlib.suppress(OSError):  # of a disk that fails the appends tell
                self.journal.check_folder()
            if self.lost:
                log.error(
                    "%s was removed or renamed, another bridge may be on that path: nothing more is acknowledged,"
                    " and this one ends",
                    self.folder,
                )
                self.writer.stop(0.0)  # at once: it goes by that path as well
                self.on_lost()
                return

    def stop(self, timeout: float) -> bool:
        """Flush everything to tables and files; True if that was done within `timeout` seconds."""
        self._stopping.set()
        done = not self.lost and self.writer.stop(timeout)
        self.journal.close()
        return done

    def stats(self) -> dict[str, Any]:
        """Counts of the journal and of everything in the writer; see README, `/status`."""
        sizes = list(map(_size, segments.list_segments(self.folder)))
        journal = {
            "position": self.journal.durable,
            "failed": self.journal.failures,
            "healthy": self.journal.healthy,
            "segments": len(sizes),
            "bytes": sum(sizes),
        }
        return {"journal": journal, **self.writer.stats()}

    def probe(self) -> None:
        """Raise OSError where the journal's folder takes no new file."""
        self.journal.probe()


def _size(path: pathlib.Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # the writer has let go of it
        return 0
