"""A record that ends the process each time it is read must not hold up the others for ever.

Beside the positions, each reader of the journal says which records it is
working on, and how often the process died meanwhile.  Whoever finds that it
died takes a quarter of those records at once, then a quarter of that; the one
that is left, on which alone it then dies three times more, is the culprit.  Fewer
would condemn an innocent one where somebody kills the process now and then.
"""

import json
import os
import pathlib

DEATHS = 3
_ROOM = 400  # bytes of the file, always written whole


class Attempts:
    """The file at `path`; for one thread, but for `retire`.  A disk that says no costs nothing but the count."""

    def __init__(self, path: pathlib.Path):
        self.deaths = 0
        self._first = self._last = self._until = 0
        self._working = False
        self._share = 1 << 62
        self._suspect = self._alone = 0
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._take_up(json.loads(os.pread(self._fd, _ROOM, 0) or "{}"))
        except (OSError, ValueError, TypeError, KeyError):
            self._fd = getattr(self, "_fd", -1)

    def _take_up(self, note: dict[str, int]) -> None:
        if not note:
            return
        self.deaths, self._until, self._share = note["deaths"], note["until"], note["share"]
        if note["working"]:
            self.deaths += 1
            self._until = max(self._until, note["last"])
            count = note["last"] - note["first"] + 1
            self._share = max(1, count // 4)
            if count == 1:
                self._alone = note["alone"] + 1 if note["suspect"] == note["first"] else 1
                self._suspect = note["first"]

    def most(self, after: int, wanted: int) -> int:
        """How many of `wanted` records behind `after` to take at once."""
        if after >= self._until:
            self.deaths, self._share = 0, 1 << 62
        return min(wanted, self._share)

    def is_deadly(self, number: int) -> bool:
        """Whether the process has died on this record three times, with nothing else in its hands."""
        return number == self._suspect and self._alone >= DEATHS

    def begin(self, first: int, last: int) -> None:
        """Records `first` to `last` are being worked on."""
        self._first, self._last = first, last
        self.resume()

    def resume(self) -> None:
        """The same ones again, after a rest."""
        self._write(True)

    def rest(self) -> None:
        """They are done, or something else is waited for: who dies now does not die of them."""
        if self._working:
            self._write(False)

    def retire(self) -> None:
        """The process ends of its own will."""
        self.rest()
        self._fd = -1

    def _write(self, working: bool) -> None:
        self._working = working
        note = {
            "first": self._first,
            "last": self._last,
            "working": int(working),
            "deaths": self.deaths,
            "until": self._until,
            "share": self._share,
            "suspect": self._suspect,
            "alone": self._alone,
        }
        try:
            os.pwrite(self._fd, json.dumps(note).encode().ljust(_ROOM), 0)
        except OSError:
            self._working = False
