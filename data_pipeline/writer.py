"""The writer: the process that turns the journal into tables and files.

The server starts it with a lower priority and talks to it over two pipes.
Standard input: the settings, a line of JSON; then a number a line, up to which
the journal is durable; `stop` for finish and exit; the end of input means that
the server is gone.  Standard
output: a line of JSON with everybody's counts whenever they changed.
Exit code 0: everything is in tables and files; 3: something is left in the
journal, for the next start.
"""

import argparse
import contextlib
import fcntl
import io
import json
import logging
import os
import pathlib
import selectors
import signal
import sys
import time
from functools import partial
from typing import IO, Any

from data_pipeline.config import DataFolder, Settings
from data_pipeline.files import atomic
from data_pipeline.files.depth import DepthPersistor
from data_pipeline.files.growing import GrowingFiles
from data_pipeline.files.writer import FilesWriter
from data_pipeline.history.importer import HistoryImporter
from data_pipeline.history.queue import HistoryQueue
from data_pipeline.lake import view_statements
from data_pipeline.lake.nightly import NightlyArchive
from data_pipeline.operations import logs
from data_pipeline.repository import segments
from data_pipeline.repository.database import Database, DatabaseDamaged, last_id
from data_pipeline.repository.journal_reader import Cache, DurablePosition, JournalReader, SetAside
from data_pipeline.repository.loader import Loader
from data_pipeline.repository.rows import Rows

log = logging.getLogger("webhook")

NICENESS = 19
HISTORY_SETTLE = 10.0  # s
QUIET_WAIT = 3.0  # s that the writer of a server that was killed may take to end without a word about it
TICK = 0.5  # s, between two reports while there is something to do
# s; DuckDB's calls give the interpreter away and want it back ten times a session, from a thread that parses.
SWITCH_INTERVAL = 0.0005


class Writer:
    """Loader, files and depth persistor on one journal.

    end: number of its last record when the server opened it; durable: of the last one that is durable now.
    """

    def __init__(self, settings: Settings, journal: str, end: int, durable: int):
        self.settings = settings
        self.folder = settings.folder.journal
        self.progress = DurablePosition(durable)
        self.aside = SetAside(settings.folder.set_aside)
        cache = Cache()
        self.sources = sources = [
            JournalReader(self.folder, self.progress, cache, self.aside, names) for names in (True, False)
        ]
        lake = settings.folder.lake
        own = settings.values == "own"
        self.loader = Loader(
            Database(settings.database),
            sources[0],
            journal,
            settings.load_interval,
            lambda: view_statements(lake),
            self.folder / "tables.position",
            end,
            partial(Rows, own),
        )
        spots = GrowingFiles(settings.data_dir, self.folder / "files.position", journal)
        depths = GrowingFiles(settings.data_dir, self.folder / "depth.position", journal)
        spots.open()
        depths.open()
        self.depth = DepthPersistor(depths)
        self.files = FilesWriter(settings.data_dir, sources[1], spots, self.depth, own)
        sources[1].bound = self._near_the_loader
        self.history = None
        if not settings.history_download_command:
            self.history = HistoryImporter(
                HistoryQueue(settings.database),
                settings.data_dir,
                settings.history_allowed_hosts,
                settings.history_max_bytes,
                HISTORY_SETTLE,
                api_key=settings.gexbot_api_key,
            )
            self.loader.on_links = self.history.wake
        self.archive = None
        if settings.archive_after_days:
            self.archive = NightlyArchive(settings.data_dir, settings.archive_after_days)
        self._reported = ""
        self._untidy = ""  # why a part of the journal could not be let go of
        self._finishing = False

    def _near_the_loader(self) -> int:
        """The files stay so close ahead of the loader that each record is parsed once for both.

        They wait for nothing at the end, or while the loader cannot work.
        """
        position = self.loader.position  # once: it is another thread's
        if self._finishing or self.loader.trouble or position is None:
            return self.progress.durable
        return position + Cache.SIZE // 2

    def start(self) -> None:
        """Start every part on its threads."""
        for part in (self.depth, self.files, self.loader, self.history, self.archive):
            if part is not None:
                part.start()

    def run(self, words: io.FileIO, report: IO[bytes]) -> int:
        """Follow what `words` (a binary stream) says until `stop` or its end; returns the exit code."""
        os.set_blocking(words.fileno(), False)
        selector = selectors.DefaultSelector()
        selector.register(words, selectors.EVENT_READ)
        buffer, tick = b"", 0.0
        while True:
            selector.select(None if self._settled() else TICK)
            got = words.read()
            if got == b"":
                log.info("the server is gone; what it acknowledged is in the journal")
                return 3
            *lines, buffer = (buffer + (got or b"")).split(b"\n")
            for line in lines:
                if line == b"stop":
                    return self._finish(report)
                self.progress.advance(int(line))
            if time.monotonic() >= tick:
                tick = time.monotonic() + TICK
                self._tidy()
                self._report(report)

    def _settled(self) -> bool:
        """Whether everything is done and reported, so that only a new word is worth waking for."""
        ends = (self.loader.safe, self.files.spots.noted, self.depth.files.noted)
        return all(end >= self.progress.durable for end in ends) and self._reported == json.dumps(self.stats())

    def _tidy(self) -> None:
        """Let go of the part of the journal that is in the tables and in the files."""
        done = min(self.loader.safe, self.files.spots.noted, self.depth.files.noted)
        try:
            segments.remove_consumed(self.folder, done)
            self._untidy = ""
        except OSError as problem:  # it only takes room; the next look tries again
            if str(problem) != self._untidy:
                self._untidy = str(problem)
                log.error("a part of the journal that is done with cannot be removed: %s", ascii(self._untidy))

    def _report(self, report: IO[bytes]) -> None:
        line = json.dumps(self.stats())
        if line != self._reported:
            self._reported = line
            try:
                report.write(line.encode() + b"\n")
                report.flush()
            except BrokenPipeError:
                log.debug("the server is gone")  # the end of standard input says so too

    def stats(self) -> dict[str, Any]:
        """What every part here counts."""
        parts = {
            "loader": self.loader,
            "files": self.files,
            "depth": self.depth,
            "history": self.history,
            "archive": self.archive,
        }
        return {**{name: part.stats() for name, part in parts.items() if part}, "set_aside": self.aside.count}

    def end_children(self) -> None:
        """End the import and the archive run that go on; both are done again later."""
        for part in (self.history, self.archive):
            if part is not None:
                part.stop(1.0)

    def _finish(self, report: IO[bytes]) -> int:
        """Do all that is in the journal.  The server ends this process where it takes too long."""
        patience = 3600.0
        self._finishing = True
        self.end_children()
        self.progress.end()
        done = self.files.stop(patience) and self.depth.stop(patience)
        done = self.loader.stop(patience) and done
        done = done and min(self.loader.safe, self.files.spots.noted, self.depth.files.noted) >= self.progress.durable
        self._tidy()
        self._report(report)
        return 0 if done else 3


def find_last_link(database: Database) -> int:
    """The highest id of the history queue; 0 where the file is damaged, and then it is moved aside."""
    try:
        with database.session(wait=5.0) as con:
            return last_id(con, "gex_history_queue")
    except DatabaseDamaged as problem:
        log.error("the database is damaged and now lies at %s: %s", database.move_aside(problem), ascii(str(problem)))
        return 0


def answer_last_link(database: Database) -> dict[str, Any]:
    """`last_link`, or the `problem` that keeps it from being read, in one line."""
    try:
        return {"last_link": find_last_link(database)}
    except Exception as problem:  # whatever it is, the server cannot start, and says so
        return {"problem": " ".join(f"{type(problem).__name__}: {problem}".split())[:500]}


def take_turn(folder: pathlib.Path) -> int:
    """Wait until no other writer is on this journal (one whose server was killed may still end its session)."""
    fd = os.open(folder / "writer.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    until = time.monotonic() + QUIET_WAIT
    while time.monotonic() < until:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        time.sleep(0.02)
    log.warning("another writer is still on this journal; this one begins when it has ended")
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


def make_ready(folder: DataFolder) -> None:
    """Make the folders and clear them of what a crash left.

    What lies in `gex/` itself is the status refresher's, which may be writing just now.
    """
    atomic.clean(folder.journal, "*.position.*")
    for each in (folder.raw, folder.views, folder.depth):
        atomic.make_folder(each)
        atomic.fsync_folder(each.parent)
    for each in (folder.raw, folder.depth, *filter(pathlib.Path.is_dir, folder.views.iterdir())):
        atomic.clean(each)


def main() -> int:
    """The process; its settings come on standard input."""
    parser = argparse.ArgumentParser(prog="data_pipeline.writer", description="Started by the bridge, not by hand.")
    parser.add_argument("--journal", help="id of the journal")
    parser.add_argument("--end", type=int, default=0, help="number of its last record when the server opened it")
    parser.add_argument("--durable", type=int, default=0, help="number of the last one that is durable")
    parser.add_argument("--last-link", action="store_true", help="say the highest id of the history queue")
    args = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # The server says when, over the pipe.  Not SIG_IGN, which the children would inherit.
        signal.signal(number, lambda *_: None)
    words = io.FileIO(0)  # unbuffered: what comes behind the settings stays in the pipe, where `run` waits for it
    line = words.readline()
    if not line:
        return 3
    settings = Settings.from_json(line)
    logs.configure(settings.level, settings.log_json)
    if args.last_link:
        print(json.dumps(answer_last_link(Database(settings.database))))
        return 0
    os.nice(NICENESS)
    sys.setswitchinterval(SWITCH_INTERVAL)
    turn = take_turn(settings.folder.journal)
    make_ready(settings.folder)  # not before: the writer of a server that was killed may have just begun a file
    writer = Writer(settings, args.journal, args.end, args.durable)
    writer.start()
    code = writer.run(words, sys.stdout.buffer)
    writer.end_children()
    logs.flush()
    os.close(turn)
    for source in writer.sources:
        source.attempts.retire()
    # Threads in the middle of a session are not waited for: a session is a
    # transaction, and the lock on the folder goes with the process.
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
