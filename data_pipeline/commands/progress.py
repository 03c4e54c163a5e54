"""How far a long command is: bars with rate and time left on a terminal, plain lines elsewhere, or nothing."""

import sys
import time
from typing import TYPE_CHECKING, Never, TextIO

if TYPE_CHECKING:
    from tqdm import tqdm

# Seconds between two plain lines.
LINE_EVERY = 5.0


class Progress:
    """`progress(what, done, whole)` as often as you like; to standard error, for standard output has the data.

    quiet: show nothing (for --json).  unit: of the numbers, `B` for bytes.
    """

    def __init__(self, name: str, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._name, self._quiet, self._stream = name, quiet, stream or sys.stderr
        self._what: str | None = None
        self._bar: tqdm[Never] | None = None
        self._ended: tuple[str, int] | None = None  # the last line that said all of something
        self._said = 0.0

    def __call__(self, what: str, done: int, whole: int | None) -> None:
        if self._quiet:
            return
        if not self._stream.isatty():
            return self._line(what, done, whole)
        if what != self._what:
            from tqdm import tqdm

            self.close()
            unit = "B" if what in ("reading", "fetching") else " rows"
            self._bar = tqdm(desc=f"{self._name}: {what}", total=whole, unit=unit, unit_scale=True, file=self._stream)
            self._what = what
        if self._bar is not None:
            self._bar.total = whole
            self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _line(self, what: str, done: int, whole: int | None) -> None:
        now = time.monotonic()
        if what == self._what and now - self._said < LINE_EVERY and done != whole:
            return
        if (what, done) == self._ended:
            return
        self._what = what if done != whole else None
        self._ended = (what, done) if done == whole else None
        self._said = now
        share = f" ({done / whole:.0%})" if whole else ""
        print(f"{self._name}: {what} {done:,}{f' of {whole:,}' if whole else ''}{share}", file=self._stream, flush=True)
