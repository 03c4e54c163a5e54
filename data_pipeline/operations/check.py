"""`gex-bridge check`: reads everything there is in the data folder and says what is whole and what is not.

Nothing is changed unless `repair` is called, and then only latest.json and
the views, which hold nothing that is not elsewhere.  What a server at work may
have half done at this moment is not looked at while one runs.
"""

import fcntl
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

from data_pipeline.config import DataFolder, Settings
from data_pipeline.files import atomic
from data_pipeline.files.names import folder_name
from data_pipeline.operations import check_journal, rebuild
from data_pipeline.operations.holders import bridge_running
from data_pipeline.payloads.store import TickerSnapshot
from data_pipeline.repository.journal import FolderInUse

CSV_HEADER = "strike,gex,volume,open_interest"
BAD_LINES_NAMED = 5
DATABASE_WAIT = 10.0  # s for which a database that is in use is tried
PARTS = ("journal", "files", "depth", "tables")


@dataclass
class Finding:
    """Something that is not as it should be.

    path: relative to DATA_DIR, or a table's name; is_broken: False for what
    is worth knowing, but costs nothing; remedy: what `repair` does about it.
    """

    part: str
    path: str
    problem: str
    is_broken: bool = True
    remedy: str = ""
    repaired: bool = False


class Check:
    """One look at a data folder.  After `run`: `findings`, and `counts` by part.  For one thread."""

    def __init__(self, settings: Settings) -> None:
        self.folder: DataFolder = settings.folder
        self.root: pathlib.Path = settings.data_dir
        self.database: pathlib.Path = settings.database
        self.running = bridge_running(self.root)
        self.findings: list[Finding] = []
        self.counts: dict[str, dict[str, int]] = {part: {} for part in PARTS}
        self._own = settings.values == "own"
        self._journal = check_journal.JournalCheck(self.folder.journal, self.running)

    @property
    def whole(self) -> bool:
        """Whether nothing is broken any more."""
        return not any(f.is_broken and not f.repaired for f in self.findings)

    def run(self, say: Callable[[str], None] = lambda part: None) -> None:
        """Read everything; `say` hears which part comes next."""
        for part in PARTS:
            say(part)
            getattr(self, f"_check_{part}")()

    def repair(self, say: Callable[[str], None] = lambda part: None) -> None:
        """Read everything, make latest.json and the views anew where they are broken, and look at them again.

        With no bridge beside: raises FolderInUse while one runs, and OSError.
        """
        with ExitStack() as locks:
            folder = self.folder.journal
            folder.mkdir(exist_ok=True)
            for name in ("lock", "writer.lock"):
                _take(folder / name, locks)
            self.running = False
            self.run(say)
            broken = [f for f in self.findings if f.part == "files" and f.is_broken]
            if not any(f.remedy for f in broken):
                return
            folders = {pathlib.Path(f.path).name for f in broken}
            rebuild.latest_and_views(self.root, self.database, folders, self._own)
            self.findings = [f for f in self.findings if f.part != "files"]
            self._check_files()
            left = {f.path for f in self.findings}
            self.findings += [replace(f, repaired=True) for f in broken if f.path not in left]

    def _broken(self, part: str, path: pathlib.Path | str, problem: str, remedy: str = "") -> None:
        self.findings.append(Finding(part, self._name(path), problem, True, remedy))

    def _note(self, part: str, path: pathlib.Path | str, text: str) -> None:
        self.findings.append(Finding(part, self._name(path), text, False))

    def _name(self, path: pathlib.Path | str) -> str:
        return str(path.relative_to(self.root)) if isinstance(path, pathlib.Path) else path

    # The journal

    def _check_journal(self) -> None:
        folder = self.folder.journal
        self._check_temporary("journal", folder)
        self._journal = check_journal.JournalCheck(folder, self.running)
        for is_broken, path, text in self._journal.run():
            (self._broken if is_broken else self._note)("journal", path, text)
        self.counts["journal"] = self._journal.counts
        aside = self.folder.set_aside
        if aside.exists() and (count := self._check_lines("journal", aside)):
            self._note("journal", aside, f"{count} records could not be used and are kept here, each with the reason")

    # Views and the spot series

    def _check_files(self) -> None:
        for folder in (self.folder.raw, self.folder.views):
            self._check_temporary("files", folder)
        spots = self.folder.spot_series
        lines = self._check_lines("files", spots) if spots.exists() else 0
        snapshots = self._check_latest()
        folders = 0
        for path in sorted(self.folder.views.iterdir()) if self.folder.views.is_dir() else ():
            if path.is_dir():
                folders += 1
                if problem := self._ticker_problem(path):
                    self._view_problem(path, problem, path.name in snapshots)
                snapshots.discard(path.name)
            elif path.suffix == ".json" and (problem := _json_problem(path)):
                self._broken("files", path, f"{problem}; the next refresh writes it anew")
        for name in sorted(snapshots) if not self.running else ():
            self._view_problem(self.folder.views / name, "the files of this ticker are missing", True)
        self.counts["files"] = {"tickers": folders, "spot_lines": lines}

    def _check_latest(self) -> set[str]:
        """The folders of the tickers in latest.json."""
        path = self.folder.latest
        if not path.exists():
            if any(self.folder.views.glob("*/snapshot.json")):
                self._broken("files", path, "missing", "made from journal and tables")
            return set()
        try:
            documents = json.loads(path.read_bytes())
            return {folder_name(TickerSnapshot.from_document(*each).ticker) for each in documents.items()}
        except (ValueError, AttributeError, RecursionError) as problem:
            remedy = f"moved to {path.name}.damaged, and made from journal and tables"
            self._broken("files", path, f"not readable: {ascii(str(problem))}", remedy)
            return set()

    def _ticker_problem(self, folder: pathlib.Path) -> str:
        problems = [
            f"{name}: {p}" for name in ("snapshot.json", "metadata.json") if (p := _json_problem(folder / name))
        ]
        return "; ".join(problems) or self._compare(folder)

    def _compare(self, folder: pathlib.Path) -> str:
        document = json.loads((folder / "snapshot.json").read_bytes())
        metadata = json.loads((folder / "metadata.json").read_bytes())
        try:
            text = (folder / "snapshot.csv").read_bytes().decode("ascii")
            lines = text.split("\r\n")
            if lines[0] != CSV_HEADER or lines[-1] or any(line.count(",") != 3 for line in lines[:-1]):
                return "snapshot.csv: not whole"
            if folder_name(document["ticker"]) != folder.name:
                return f"snapshot.json: of another ticker, {document['ticker']!a}"
            strikes = len(document["all_strikes"] or ())
            # The three are replaced one after the other: a server at work may be in between.
            if not self.running and not strikes == len(lines) - 2 == metadata["strikes_count"]:
                return (
                    f"{strikes} strikes in snapshot.json, {len(lines) - 2} in snapshot.csv,"
                    f" {metadata['strikes_count']} in metadata.json"
                )
        except FileNotFoundError:
            return "snapshot.csv: missing"
        except OSError as problem:
            return f"snapshot.csv: {problem.strerror}"
        except (UnicodeDecodeError, KeyError, TypeError, AttributeError) as problem:
            return f"not as we write it: {type(problem).__name__}"
        return ""

    def _view_problem(self, folder: pathlib.Path, problem: str, is_known: bool) -> None:
        if is_known:
            self._broken("files", folder, problem, "written anew from latest.json")
        else:
            self._broken("files", folder, f"{problem}; the ticker's next payload writes it anew")

    # Depth

    def _check_depth(self) -> None:
        folder = self.folder.depth
        self._check_temporary("depth", folder)
        files = lines = 0
        for path in sorted(folder.glob("*/*.jsonl")):
            files += 1
            lines += self._check_lines("depth", path)
        dead = self.folder.dead_letters
        if dead.exists() and (count := self._check_lines("depth", dead)):
            self._note("depth", dead, f"{count} events could not be written where they belong and are kept here")
        self.counts["depth"] = {"files": files, "lines": lines}

    # Tables

    def _check_tables(self) -> None:
        # Imported here: they are heavy, and only this needs them.
        import duckdb

        from data_pipeline.operations import check_tables
        from data_pipeline.repository.database import Database, DatabaseBusy, DatabaseDamaged, first_line, position
        from data_pipeline.repository.foreign_file import NotADatabase

        if not self.database.exists():
            if self._journal.end and not self.running:
                self._note("tables", self.database, "not there yet; the journal holds what belongs in it")
            return
        try:
            broken, note = partial(self._broken, "tables"), partial(self._note, "tables")
            with Database(self.database).reading(DATABASE_WAIT) as con:
                self.counts["tables"] = check_tables.check(con, broken, note)
                loaded = position(con, self._journal.id)
            check_tables.check_indexes(Database(self.database), self.counts["tables"], DATABASE_WAIT, broken, note)
            if loaded < self._journal.end and not self.running:
                waiting = self._journal.end - loaded
                self._note(
                    "tables", self.database, f"{waiting} records are not in the tables yet; the next start loads them"
                )
            if loaded > self._journal.end and not self.running and self._journal.id:
                self._broken(
                    "tables", "bridge_journal", f"says {loaded}, but the journal ends with {self._journal.end}"
                )
        except DatabaseBusy as problem:
            said = ascii(first_line(problem))[1:-1]
            self._broken("tables", self.database, f"another process has it, so it was not read: {said}")
        except (NotADatabase, DatabaseDamaged, duckdb.Error) as problem:
            self._broken("tables", self.database, f"cannot be read: {ascii(first_line(problem))[1:-1]}")

    # Any file

    def _check_temporary(self, part: str, folder: pathlib.Path) -> None:
        if self.running:
            return  # they may be in use
        for path in sorted(folder.rglob(f".*{atomic.ENDING}")):
            self._note(part, path, "a temporary file that a crash left; the next start removes it")

    def _check_lines(self, part: str, path: pathlib.Path) -> int:
        """How many lines of JSON objects the file has; tells of those that are none."""
        count, bad = 0, []
        cut = self._journal.lengths.get(self._name(path))
        for number, (offset, line) in enumerate(_lines(path), 1):
            good = _is_object(line)
            if line.endswith(b"\n"):
                count += good
                if not good:
                    bad.append(number)
            elif not self.running:
                torn = f"the last line is torn, {len(line)} bytes"
                if cut is not None and cut <= offset:
                    self._note(part, path, f"{torn}; the next start cuts it off and writes it again")
                else:
                    self._broken(part, path, torn)
        if bad:
            named = ", ".join(map(str, bad[:BAD_LINES_NAMED])) + (" …" if len(bad) > BAD_LINES_NAMED else "")
            self._broken(part, path, f"{len(bad)} lines are no JSON objects: {named}")
        return count


def _take(path: pathlib.Path, locks: ExitStack) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    locks.callback(os.close, fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FolderInUse(f"a bridge is running on {path.parent.parent}; stop it before --repair") from None


def _lines(path: pathlib.Path) -> Iterator[tuple[int, bytes]]:
    """Each line with where it begins, in bytes."""
    offset = 0
    with open(path, "rb") as file:
        for line in file:
            yield offset, line
            offset += len(line)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _json_problem(path: pathlib.Path) -> str:
    try:
        return "" if _is_object(path.read_bytes()) else "not readable"
    except FileNotFoundError:
        return "missing"
    except OSError as problem:
        return problem.strerror or str(problem)
