"""A model of the disk: wherever the power goes, what was acknowledged is in the journal or in tables and files, once.

Every write, truncation, fsync, rename, link, unlink and fsync of a folder of
the real server and writer (DuckDB's included) is taken from strace.  At a
step of these the power fails: what was not synced by then is dropped, with
and without the names that were not synced either, or half of it is kept, page
by page.  What is left becomes a data folder on which the journal is opened
and, for some, a real bridge is started, posted to and stopped.
"""

import pathlib
import random
import shutil

from data_pipeline.repository import segments
from data_pipeline.repository.journal import Journal
from tests.helpers.support import RunningBridge, gex_payload
from tests.reliability.load import acknowledgements, check_everything_once, mark, marks
from tests.reliability.order import is_acknowledgement
from tests.reliability.trace import Call, Trace, record

ROUNDS, SHORT = 300, 3
JOURNALS_A_ROUND = 20  # journals opened for one bridge started
POSTS = 40
PAGE = 4096
# How the unsynced goes: names and data both; data only; names only; data page by page, names kept.
WAYS = ("all", "data", "names", "pages")


class File:
    """An inode: what a reader sees, and what is on the disk for certain."""

    def __init__(self):
        self.seen = bytearray()
        self.synced = b""
        self.synced_at = -1  # when the fsync began that made it so


class Disk:
    """Names and inodes below `root`, moved on by one system call after another.  A folder is a name for None."""

    def __init__(self, root: str):
        self.root = root + "/"
        self.names: dict[str, File | None] = {}
        self.synced_names: dict[str, File | None] = {}
        self._open: dict[tuple[int, int], list] = {}  # (process, descriptor) → [path, File or None, append, offset]
        self._syncing: dict[int, tuple] = {}
        self._folders_synced_at: dict[str, int] = {}

    def begin(self, call: Call) -> None:
        """An fsync covers what was written before it began."""
        opened = self._open.get((call.process, call.descriptor))
        if opened and opened[1]:
            self._syncing[id(call)] = (opened[1], bytes(opened[1].seen))
        elif opened:
            here = opened[0] + "/"
            inside = {p: f for p, f in self.names.items() if p.startswith(here) and "/" not in p[len(here) :]}
            self._syncing[id(call)] = (here, inside)

    def _opened(self, call: Call) -> list | None:
        # The number may be a pipe's by now.
        return self._open.get((call.process, call.descriptor)) if call.path.startswith(self.root) else None

    def end(self, call: Call) -> bool:
        """Whether it changed anything."""
        return call.result >= 0 and bool(getattr(self, f"_{call.name}", lambda call: False)(call))

    def _fsync(self, call: Call) -> bool:
        what, content = self._syncing.pop(id(call), (None, None))
        # One that began later, and has ended, covered more.
        if isinstance(what, File) and call.began > what.synced_at:
            what.synced, what.synced_at = content, call.began
        elif isinstance(what, str) and call.began > self._folders_synced_at.get(what, -1):
            self._folders_synced_at[what] = call.began
            kept = {
                p: f for p, f in self.synced_names.items() if not (p.startswith(what) and "/" not in p[len(what) :])
            }
            self.synced_names = {**kept, **content}
        return what is not None

    _fdatasync = _fsync

    def _openat(self, call: Call) -> bool:
        path = call.strings[-1].decode()
        self._open.pop((call.process, call.result), None)
        if not (path + "/").startswith(self.root):
            return False
        if "O_DIRECTORY" in call.arguments or path in self.names and self.names[path] is None:
            self._open[call.process, call.result] = [path, None, False, 0]
            return False
        if is_new := path not in self.names:
            self.names[path] = File()
        if "O_TRUNC" in call.arguments:
            self.names[path].seen.clear()
        self._open[call.process, call.result] = [path, self.names[path], "O_APPEND" in call.arguments, 0]
        return is_new

    def _write(self, call: Call) -> bool:
        opened = self._opened(call)
        if not opened or not opened[1]:
            return False
        at = len(opened[1].seen) if opened[2] else opened[3]
        self._put(opened[1], at, call.strings[0][: call.result])
        opened[3] = at + call.result
        return True

    def _pwrite64(self, call: Call) -> bool:
        opened = self._opened(call)
        if opened and opened[1]:
            self._put(opened[1], call.offset, call.strings[0][: call.result])
        return bool(opened)

    @staticmethod
    def _put(file: File, at: int, data: bytes) -> None:
        file.seen.extend(bytes(max(0, at - len(file.seen))))
        file.seen[at : at + len(data)] = data

    def _ftruncate(self, call: Call) -> bool:
        opened = self._opened(call)
        if opened and opened[1]:
            del opened[1].seen[call.offset :]
        return bool(opened)

    def _truncate(self, call: Call) -> bool:
        file = self.names.get(call.strings[0].decode())
        if file:
            del file.seen[call.offset :]
        return bool(file)

    def _rename(self, call: Call) -> bool:
        before, after = (text.decode() for text in call.strings)
        if before in self.names:
            self.names[after] = self.names.pop(before)
            return True
        return False

    def _link(self, call: Call) -> bool:
        before, after = (text.decode() for text in call.strings)
        if before in self.names:
            self.names[after] = self.names[before]
        return before in self.names

    def _unlink(self, call: Call) -> bool:
        return self.names.pop(call.strings[0].decode(), None) is not None

    def _mkdir(self, call: Call) -> bool:
        path = call.strings[0].decode()
        if (path + "/").startswith(self.root):
            self.names[path] = None
        if path + "/" == self.root:
            self.synced_names[path] = None
        return False

    def left(self, way: str, chance: random.Random) -> dict[str, bytes]:
        """What a power failure leaves: the files' paths under the root, with their content."""
        names = self.synced_names if way in ("all", "names") else self.names
        found = {}
        for path, file in names.items():
            folders = [
                str(parent) for parent in pathlib.PurePath(path).parents if str(parent).startswith(self.root[:-1])
            ]
            if file and all(folder in names for folder in folders):
                content = bytes(file.seen) if way == "names" else file.synced
                found[path[len(self.root) :]] = _mixed(file, chance) if way == "pages" else content
        return found


def _mixed(file: File, chance: random.Random) -> bytes:
    """Each page as it was synced or as it was seen last, the end anywhere between."""
    size = chance.randint(*sorted((len(file.synced), len(file.seen))))
    pages = []
    for at in range(0, size, PAGE):
        page = bytes((file.seen if chance.random() < 0.5 else file.synced)[at : at + PAGE])
        pages.append(page + bytes(PAGE - len(page)))
    return b"".join(pages)[:size]


class Failures:
    """The trace of two lives, and the power failing in them."""

    def __init__(self, folder: pathlib.Path, seed: int):
        self.folder = folder
        self.chance = random.Random(seed)
        self.traces, self.loads = record(folder, POSTS)
        self.journals = self.bridges = 0

    def run(self, rounds: int) -> int:
        """How many steps there were."""
        steps = sum(1 for _ in self._steps())
        for_bridges = set(self.chance.sample(range(steps), min(rounds, steps)))
        for_journals = set(self.chance.sample(range(steps), min(JOURNALS_A_ROUND * rounds, steps)))
        for number, (disk, acknowledged, gone) in enumerate(self._steps()):
            if number in for_journals:
                for way in WAYS:
                    self._open_journal(disk.left(way, self.chance), acknowledged, gone, way)
            if number in for_bridges:
                way = self.chance.choice(WAYS)
                self._start_bridge(disk.left(way, self.chance), acknowledged, way)
        return steps

    def _steps(self):
        """After each call that changed something: the disk, the marks of what is acknowledged and of what left."""
        disk, acknowledged, gone = Disk(str(self.folder / "data")), set(), set()
        for trace in self.traces:
            events = [(call.ended, 1, call) for call in trace.calls]
            events += [(c.began, 0, c) for c in trace.calls if c.name in ("fsync", "fdatasync")]
            requests: dict[int, bytes] = {}
            for _, is_end, call in sorted(events, key=lambda event: event[:2]):
                if not is_end:
                    disk.begin(call)
                    continue
                _follow(trace, call, requests, acknowledged)
                if call.name == "unlink" and call.path.endswith(".journal") and call.result == 0:
                    gone |= marks(bytes(disk.names[call.path].seen))
                if disk.end(call):
                    yield disk, acknowledged, gone

    def _write_down(self, left: dict[str, bytes]) -> pathlib.Path:
        root = self.folder / "left"
        shutil.rmtree(root, ignore_errors=True)
        for name, content in left.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
        return root

    def _open_journal(self, left: dict[str, bytes], acknowledged: set, gone: set, way: str) -> None:
        self.journals += 1
        root = self._write_down({name: content for name, content in left.items() if name.startswith("journal/")})
        journal = Journal(root / "journal")
        journal.open()
        reader, found = segments.Reader(root / "journal", 0), set()
        while parts := reader.read(journal.durable):
            for part in parts:
                if isinstance(part, segments.Record):
                    found |= marks(part.payload)
        journal.close()
        missing = acknowledged - gone - found
        assert not missing, f"{len(missing)} acknowledged records are not in the journal, {way}: {sorted(missing)[:3]}"

    def _start_bridge(self, left: dict[str, bytes], acknowledged: set, way: str) -> None:
        self.bridges += 1
        bridge = RunningBridge(self._write_down(left), LOAD_INTERVAL="0.05", STOP_TIMEOUT="60")
        bridge.log_path.unlink(missing_ok=True)
        with bridge:
            assert bridge.post("/gex", gex_payload("SPX")) == 202
            assert bridge.stop() == 0
        said = bridge.complaints
        assert "is damaged" not in said, said
        assert "Traceback" not in said and "not everything was flushed" not in said, said
        expected = acknowledgements()
        for load in self.loads:
            for kind, items in load.acknowledged.items():
                expected[kind] += [item for item in items if mark(kind, item) in acknowledged]
        try:
            check_everything_once(bridge, expected)
        except AssertionError as problem:
            raise AssertionError(f"power failure {self.bridges}, {way}: {problem}") from problem


def _follow(trace: Trace, call: Call, requests: dict[int, bytes], acknowledged: set) -> None:
    if call.process != trace.server:
        return
    if call.name == "accept4" and call.result >= 0:
        requests[call.result] = b""
    elif call.name == "recvfrom" and call.result > 0 and call.descriptor in requests:
        requests[call.descriptor] += call.strings[0]
    elif is_acknowledgement(call) and call.result > 0:
        acknowledged |= marks(requests[call.descriptor].partition(b"\r\n\r\n")[2])


def run(rounds: int, folder: pathlib.Path, seed: int = 7) -> str:
    failures = Failures(folder, seed)
    steps = failures.run(rounds)
    return (
        f"{steps:,} steps, the power failing in {failures.journals:,} journals and under {failures.bridges:,} bridges:"
        " 0 acknowledged lost, 0 doubled, 0 broken files"
    )
