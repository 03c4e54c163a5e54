"""Damage: a broken database is moved aside, named in the log and filled anew from what the journal still has, while
acknowledgements go on; a cut or a flipped byte in a segment costs at most the record it hits, set aside and named.

A real bridge makes the data and is killed; bytes of its database, write-ahead
log or segment are then overwritten, cut or flipped, temporary files of a
crash are strewn about, and a real bridge starts on it.  Besides, one of its
segments is cut and flipped at every byte there is, and opened as a journal.
"""

import itertools
import pathlib
import random
import shutil

from data_pipeline.repository import segments
from data_pipeline.repository.journal import Journal
from tests.helpers.support import RunningBridge, eventually, gex_payload, read
from tests.reliability.load import Load, check_everything_once, mark, marks

ROUNDS, SHORT = 100, 1
SEGMENT_BYTES = 30_000
SHORT_STRIDE = 211  # every so many bytes in the short version
DATABASE = "raw/gex/gex_history.duckdb"
LEFTOVERS = (
    "raw/gex/.latest.json.0a1b2c.tmp~",
    "gex/T0/.snapshot.csv.0a1b2c.tmp~",
    "journal/.0000.journal.tmp~",
    "depth/T0/.x.tmp~",
    "raw/gex/.gex_history.duckdb.0a1b2c.tmp~.wal",
)


def overwritten(content: bytes, at: int, size: int, chance: random.Random) -> bytes:
    return content[:at] + chance.randbytes(size) + content[at + size :]


# name → (content, chance) → damaged content
DATABASE_DAMAGE = {
    "magic bytes": lambda c, r: overwritten(c, 0, 64, r),
    "header": lambda c, r: overwritten(c, r.randrange(64, 12288), 32, r),
    "all of the headers": lambda c, r: overwritten(c, 0, 12288, r),
    "middle": lambda c, r: overwritten(c, r.randrange(12288, len(c) - 4096), 4096, r),
    "everything behind the headers": lambda c, r: overwritten(c, 12288, len(c) - 12288, r),
    "cut": lambda c, r: c[: r.randrange(12288, len(c))],
    "cut to nothing": lambda c, r: b"",
    "zeros": lambda c, r: bytes(len(c)),
}
LOG_DAMAGE = {
    "garbage log": lambda c, r: r.randbytes(5000),
    "log flipped": lambda c, r: flipped(c, r.randrange(len(c) or 1)),
    "log cut": lambda c, r: c[: r.randrange(len(c) or 1)],
}


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :] if content else content


class Damaged:
    """Data of a bridge that was killed, to be copied and damaged."""

    def __init__(self, folder: pathlib.Path, seed: int):
        self.folder = folder
        self.chance = random.Random(seed)
        self.origin = folder / "origin"
        self.moved = self.kept = self.flips = self.cuts = 0
        bridge = RunningBridge(self.origin, LOAD_INTERVAL="0.05", STOP_TIMEOUT="60").start()
        # Nothing of this life is in the journal's newest segment later on.
        assert bridge.post("/uw", {"topic": "load", "serial": "old"}) == 200
        assert bridge.stop() == 0
        bridge.start()
        with Load(bridge, clients=3) as load:
            eventually(lambda: load.count > 60)
        self.acknowledged = load.acknowledged
        serials = len(load.acknowledged["uw"]) + 1
        eventually(lambda: bridge.rows("SELECT count(*) FROM universal_webhooks")[0][0] >= serials)
        bridge.kill()
        eventually(lambda: "the server is gone" in bridge.log)

    def copy(self) -> RunningBridge:
        data = self.folder / "damaged"
        shutil.rmtree(data, ignore_errors=True)
        shutil.copytree(self.origin, data)
        bridge = RunningBridge(data, LOAD_INTERVAL="0.05", STOP_TIMEOUT="60")
        bridge.log_path.unlink(missing_ok=True)
        return bridge

    def database(self, name: str, ending: str, damage) -> None:
        bridge = self.copy()
        path = bridge.data_dir / (DATABASE + ending)
        path.write_bytes(damage(path.read_bytes() if path.exists() else b"", self.chance))
        for leftover in LEFTOVERS:
            (bridge.data_dir / leftover).parent.mkdir(parents=True, exist_ok=True)
            (bridge.data_dir / leftover).write_bytes(b"half of somethi")
        with bridge:
            assert bridge.post("/gex", gex_payload("T0", 1_800_000_000)) == 202
            assert bridge.stop() == 0, bridge.complaints
        said = bridge.complaints
        assert "Traceback" not in said and "not everything was flushed" not in said, f"{name}: {said}"
        assert not list(bridge.data_dir.rglob(".*.tmp~*")), f"{name}: temporary files are still there"
        aside = list(bridge.data_dir.rglob("*.damaged-*"))
        assert bool(aside) == ("is damaged and now lies at" in said) and all(
            str(a).removesuffix(".wal") in said for a in aside
        ), said
        self.moved += bool(aside)
        self.kept += not aside
        everything = {**self.acknowledged, "gex": [*self.acknowledged["gex"], ("T0", 1_800_000_000)]}
        check_everything_once(bridge, everything)
        has_old = read(bridge.database, "SELECT count(*) FROM universal_webhooks WHERE payload_json LIKE '%old%'")[0][0]
        assert has_old or not ending, f"{name}: a damaged log cost the database"

    def segment(self, cut: bool) -> None:
        """One byte of the newest segment's records flipped, or all from one on gone; tables and files are behind it."""
        bridge = self.copy()
        for path in (bridge.data_dir / "raw", bridge.data_dir / "depth", bridge.data_dir / "gex"):
            shutil.rmtree(path)
        for note in (bridge.data_dir / "journal").glob("*.position"):
            note.unlink()
        segment = max((bridge.data_dir / "journal").glob("*.journal"))
        content = segment.read_bytes()
        at = self.chance.randrange(segments.HEADER_BYTES + 8, len(content))
        segment.write_bytes(content[:at] if cut else flipped(content, at))
        with bridge:
            assert bridge.post("/uw", {"topic": "load", "serial": "new"}) == 200
            assert bridge.stop() == 0
        said = bridge.complaints
        assert "Traceback" not in said and "not everything was flushed" not in said, said
        assert said.count("is set aside") == 1, f"at {at}: {said}"
        self._only_one_is_missing(bridge, content[:at] if cut else None)
        self.cuts, self.flips = self.cuts + cut, self.flips + (not cut)

    def end_lost(self) -> None:
        """The newest segment cut where tables and files have had all of it: what comes then is new, and gets in."""
        bridge = self.copy()
        with bridge:
            assert bridge.stop() == 0
        segment = max((bridge.data_dir / "journal").glob("*.journal"))
        content = segment.read_bytes()
        segment.write_bytes(content[: self.chance.randrange(segments.HEADER_BYTES, len(content) // 2)])
        with bridge:
            assert bridge.post("/uw", {"topic": "load", "serial": "new"}) == 200
            assert bridge.post("/gex", gex_payload("T0", 1_800_000_000)) == 202
            assert bridge.stop() == 0
        said = bridge.complaints
        assert "Traceback" not in said and "not everything was flushed" not in said, said
        more: dict[str, list] = {"uw": ["new"], "gex": [("T0", 1_800_000_000)], "link": []}
        check_everything_once(bridge, {kind: items + more[kind] for kind, items in self.acknowledged.items()})

    def every_byte(self, stride: int) -> int:
        """Cut the newest segment at each byte, and flip it; how many bytes there were."""
        path = max((self.origin / "journal").glob("*.journal"))
        whole = path.read_bytes()
        whole = whole[: whole.rindex(segments.MARK, 0, SEGMENT_BYTES)]
        journal = self.folder / "journal"
        journal.mkdir()
        records, damage = self._read_back(journal, path.name, whole)
        ends = list(
            itertools.accumulate(
                (segments.RECORD.size + len(r.payload) for r in records), initial=segments.HEADER_BYTES
            )
        )
        assert len(records) > 5 and not damage and ends[-1] == len(whole)
        tried = range(0, len(whole), stride)
        for at in tried:
            complete = sum(end <= at for end in ends[1:])
            torn = whole[ends[complete] : at]
            kept, damage = self._read_back(journal, path.name, whole[:at])
            assert kept == records[:complete] and [d.raw for d in damage] == ([torn] if torn else []), f"cut at {at}"
            kept, damage = self._read_back(journal, path.name, flipped(whole, at))
            hit = records[complete : complete + (at >= segments.HEADER_BYTES)]
            assert kept == [r for r in records if r not in hit] and len(damage) == len(hit), f"flipped at {at}"
        return len(tried)

    @staticmethod
    def _read_back(folder: pathlib.Path, name: str, content: bytes) -> tuple[list, list]:
        """The records and the damaged places of a journal with that segment, after one more record was appended."""
        for path in folder.iterdir():
            path.unlink()
        (folder / name).write_bytes(content)
        journal = Journal(folder)
        journal.open()
        try:
            number = journal.append(lambda: (b"following", None))
        finally:
            journal.close()
        reader, found = segments.Reader(folder, segments.first_number(folder / name) - 1), []
        while parts := reader.read(number):
            found += parts
        last = found.pop()
        assert (last.number, last.payload) == (number, b"following")
        return [p for p in found if isinstance(p, segments.Record)], [
            p for p in found if isinstance(p, segments.Damage)
        ]

    def _only_one_is_missing(self, bridge: RunningBridge, left: bytes | None) -> None:
        found = {
            serial
            for (serial,) in read(
                bridge.database, "SELECT json_extract_string(payload_json, '$.serial') FROM universal_webhooks"
            )
        }
        found |= set(
            read(
                bridge.database,
                "SELECT ticker, json_extract(raw_payload_json, '$.timestamp')::BIGINT FROM gex_bridge_snapshots",
            )
        )
        found |= set(read(bridge.database, "SELECT id, url FROM gex_history_queue"))
        assert "new" in found
        missing = {mark(kind, item) for kind, items in self.acknowledged.items() for item in items if item not in found}
        if left is None:
            assert len(missing) == 1, f"a flipped byte cost {len(missing)} records"
        else:
            gone = missing & marks(left[: left.rindex(segments.MARK)])
            assert not gone, f"a cut cost {len(gone)} whole records in front of it"


def run(rounds: int, folder: pathlib.Path, seed: int = 3) -> str:
    damaged = Damaged(folder, seed)
    for number in range(rounds):
        kinds = [(n, "", d) for n, d in DATABASE_DAMAGE.items()] + [(n, ".wal", d) for n, d in LOG_DAMAGE.items()]
        if rounds == SHORT:
            kinds = [kinds[0], kinds[5], kinds[-2]]
        for name, ending, damage in kinds:
            damaged.database(name, ending, damage)
        damaged.segment(cut=False)
        damaged.segment(cut=True)
        damaged.end_lost()
    tried = damaged.every_byte(SHORT_STRIDE if rounds == SHORT else 1)
    return (
        f"{damaged.moved + damaged.kept} damaged databases: {damaged.moved} moved aside and filled anew,"
        f" {damaged.kept} where"
        f" nothing in use was hit; {damaged.flips} flipped bytes cost one record each,"
        f" {damaged.cuts} cuts at most the torn one,"
        f" and {rounds} of what tables and files had nothing;"
        f" a cut at, and a flip of, each of {tried:,} bytes of a segment one record at most"
    )
