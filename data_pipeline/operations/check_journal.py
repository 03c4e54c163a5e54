"""What `gex-bridge check` says of the journal: headers, records, and the notes of those who read it."""

import json
import pathlib
from typing import Any

from data_pipeline.payloads import records
from data_pipeline.repository import segments

NOTES = ("files.position", "depth.position")
ATTEMPTS = 5  # to read a journal whose segments the running writer removes

Said = tuple[bool, pathlib.Path | str, str]  # whether something is broken, what, and how


class JournalCheck:
    """One look at a journal.  After `run`: `counts`; `id` and `end`, its last record; `lengths` as its readers noted.

    lengths: path under DATA_DIR -> bytes to which the next start cuts the file.  For one thread.
    """

    def __init__(self, folder: pathlib.Path, running: bool) -> None:
        self.folder = folder
        self.running = running
        self.counts: dict[str, int] = {}
        self.id = ""
        self.end = 0
        self.lengths: dict[str, int] = {}
        self._found: list[Said] = []

    def run(self) -> list[Said]:
        """Read all of it; returns what is to be said."""
        notes = {name: self._read_note(self.folder / name) for name in NOTES}
        noted = min(note["position"] if note else 0 for note in notes.values())
        before = len(self._found)
        for _ in range(ATTEMPTS):
            try:
                self._check_headers()
                self._check_records(noted)
                break
            except FileNotFoundError:
                del self._found[before:]
        for name, note in notes.items():
            if note:
                self._check_position(self.folder / name, note)
        return self._found

    def _say(self, is_broken: bool, path: pathlib.Path | str, text: str) -> None:
        self._found.append((is_broken, path, text))

    def _read_note(self, path: pathlib.Path) -> dict[str, Any] | None:
        """How far a reader of the journal is, as it noted; None where it did not."""
        try:
            note = json.loads(path.read_bytes())
            kinds = {"position": int, "journal": str, "lengths": dict}
            if isinstance(note, dict) and all(type(note.get(key)) is kind for key, kind in kinds.items()):
                if all(type(length) is int for length in note["lengths"].values()):
                    return note
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError):
            pass
        self._say(
            True,
            path,
            "damaged; the next start moves it aside, and lines of records that are still in the journal may come twice",
        )
        return None

    def _check_headers(self) -> None:
        found, ids = segments.list_segments(self.folder), set()
        for path in found:
            with open(path, "rb") as file:
                raw = file.read(segments.HEADER_BYTES)
            copies = [
                segments.SegmentHeader.decode(raw[i * segments.HEADER.size :][: segments.HEADER.size]) for i in (0, 1)
            ]
            header = copies[0] or copies[1]
            if header is None:
                self._say(True, path, "both copies of its header are damaged")
                continue
            if None in copies:
                self._say(False, path, "one of the two copies of its header is damaged, the other one counts")
            if header.first != segments.first_number(path):
                self._say(True, path, f"its header says that it begins with record {header.first}")
            ids.add(header.journal)
            self.id = header.journal
        if len(ids) > 1:
            self._say(True, "journal", f"its segments belong to {len(ids)} different journals")
        self.counts = {"segments": len(found), "bytes": sum(p.stat().st_size for p in found)}

    def _check_records(self, noted: int) -> None:
        found = segments.list_segments(self.folder)
        first = segments.first_number(found[0]) if found else 1
        reader, last, number, damaged = segments.Reader(self.folder, first - 1), first - 1, 0, False
        while part := reader.read(1 << 62):
            for each in part:
                if isinstance(each, segments.Damage):
                    self._check_damage(each, noted)
                    damaged = True
                    continue
                if each.number > last + 1 and not damaged:
                    self._say(True, "journal", f"records {last + 1} to {each.number - 1} are missing")
                last, damaged = each.number, False
                number += 1
                try:
                    records.decode(each.payload)
                except records.RecordError as problem:
                    self._say(True, "journal", f"record {last} is none of ours: {ascii(str(problem))}")
        self.end = last
        self.counts.update(records=number, last=last)

    def _check_damage(self, damage: segments.Damage, noted: int) -> None:
        path = self.folder / damage.segment
        at_the_end = damage.offset + len(damage.raw) >= path.stat().st_size
        where = f"{len(damage.raw)} bytes at {damage.offset}"
        if at_the_end and _is_unfinished(damage.raw):
            if not self.running:
                self._say(False, path, f"{where} are the start of a record that was never acknowledged")
        elif damage.after < noted:
            self._say(False, path, f"{where} are damaged; they were set aside and named in the log")
        else:
            self._say(
                True,
                path,
                f"{where} are damaged: what was acknowledged behind record {damage.after} is lost there",
            )

    def _check_position(self, path: pathlib.Path, note: dict[str, Any]) -> None:
        """A reader cannot be further than what it reads."""
        position = note["position"]
        if self.id and note["journal"] != self.id:
            self._say(False, path, "of another journal, so it does not count")
            return
        self.lengths |= note["lengths"]
        if self.running:
            return
        if position < self.end:
            waiting = self.end - position
            self._say(False, path, f"{waiting} records are not in these files yet; the next start does it")
        elif position > self.end:
            self._say(True, path, f"says {position}, but the journal ends with {self.end}")


def _is_unfinished(raw: bytes) -> bool:
    """Whether these bytes, at the end of a segment, are a record whose end was never written."""
    if len(raw) < segments.RECORD.size:
        return raw.startswith(segments.MARK[: len(raw)])
    mark: bytes
    length: int
    mark, _, length, _ = segments.RECORD.unpack_from(raw)
    return mark == segments.MARK and len(raw) < segments.RECORD.size + length
