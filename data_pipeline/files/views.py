"""The files that show the store: latest.json, gex/TICKER/*, and the spot series.

`FilesWriter` is one of the journal's two readers.  It rewrites views in the
background, at most a few times a second and only where something changed;
nobody ever sees half of one.
"""

import csv
import io
import json
import logging
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

from data_pipeline.config import DataFolder
from data_pipeline.files import atomic
from data_pipeline.files.names import folder_name
from data_pipeline.payloads import times
from data_pipeline.payloads.records import Gex
from data_pipeline.payloads.store import WINDOWS, TickerSnapshot
from data_pipeline.payloads.values import number

log = logging.getLogger("webhook")


# Names of the max-change windows in the consolidated files, by their name in the combined view.
CHANGE_WINDOWS = dict(zip(WINDOWS.values(), ("current", "1m", "5m", "10m", "15m", "30m")))

# Indentation of one ticker's entry in latest.json, in bytes: beyond the first, and so many times as much as the
# entry itself, it stands on one line.  Else 4 MiB of `1,1,1,…` in sixty brackets would become half a gigabyte.
MOST_INDENTATION, MOST_TIMES = 1 << 20, 8
LARGE = 8 << 20  # bytes of latest.json, from which on it is written once in LARGE_PAUSE at the most
LARGE_PAUSE = 5.0  # s


def _finite_number(value: object) -> float | None:
    found = number(value)
    return found if found is not None and math.isfinite(found) else None


def _float(value: object) -> float:
    return _finite_number(value) or 0.0


def iso_timestamp(timestamp: object, received: str) -> str:
    """A number (seconds, or milliseconds above 1e11) as UTC ISO text; text stays; else the receive time."""
    if isinstance(timestamp, str) and timestamp:
        return timestamp
    moment = times.from_number(timestamp) if isinstance(timestamp, (int, float)) else None
    return moment.isoformat() if moment else f"{received}+00:00"


def consolidated(snapshot: TickerSnapshot, received: str, own: bool = False) -> dict[str, Any]:
    """`gex/TICKER/snapshot.json` as an object.  received: ISO UTC time, without offset, of the last payload."""
    view = snapshot.combined(own)
    entries = view["strikes"]
    all_strikes = None
    if isinstance(entries, list):
        all_strikes = [
            {"strike": strike, "gex": _float(entry[1]), "volume": 0, "open_interest": 0}
            for entry in entries
            if isinstance(entry, list) and len(entry) >= 2 and (strike := _finite_number(entry[0])) is not None
        ]
    windows = [
        {
            "window": CHANGE_WINDOWS[name],
            "strike": strike,
            "old_gex": 0.0,
            "new_gex": (gex := _float(pair["net_gex"])),
            "delta": gex,
        }
        for name, pair in view["max_change"].items()
        if (strike := _finite_number(pair["strike"])) is not None
    ]
    return {
        "ticker": snapshot.ticker,
        "timestamp": iso_timestamp(view["timestamp"], received),
        "spot_price": _float(view["spot"]),
        "zero_gamma": _float(view["zero_gamma"]),
        "net_gex": _float(view["net_gex_vol"]) or _float(view["net_gex_oi"]),
        "major_pos_strike": _float(view["major_pos_vol"]),
        "major_pos_vol": 0,
        "major_neg_strike": _float(view["major_neg_vol"]),
        "major_neg_vol": 0,
        "all_strikes": all_strikes,
        "change_windows": windows or None,
    }


def strikes_csv(all_strikes: list[dict[str, Any]] | None) -> str:
    """`gex/TICKER/snapshot.csv`, with CRLF line ends."""
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(("strike", "gex", "volume", "open_interest"))
    writer.writerows(row.values() for row in all_strikes or ())
    return out.getvalue()


def spot_line(record: Gex) -> bytes | None:
    """The payload's line of the spot series; None where it has no spot or no timestamp."""
    timestamp, spot = record.data.get("timestamp"), record.data.get("spot")
    if timestamp is None or spot is None:
        return None
    return json.dumps({"timestamp": timestamp, "spot": spot}).encode("ascii") + b"\n"


class Views:
    """The whole store as files, each ticker's text made only when it changed.  For one thread.

    own: how a ticker is combined, see TickerSnapshot.  `current` is False while latest.json waits for LARGE_PAUSE.
    """

    def __init__(self, root: pathlib.Path, own: bool = False, clock: Callable[[], float] = time.monotonic):
        self.root = root
        self.own = own
        self.written = 0
        self.current = True
        self._clock = clock
        self._texts: dict[str, str] = {}
        self._pending: dict[str, tuple[TickerSnapshot, str]] = {}
        self._failing: set[str] = set()
        self._due = 0.0

    def restore(self, tickers: list[TickerSnapshot]) -> None:
        """Begin with what `latest.json` said; a ticker whose own files are not whole gets them again."""
        for snapshot in tickers:
            self._texts[snapshot.ticker] = _entry(snapshot, self.own)
            if not _is_whole(DataFolder(self.root).views / folder_name(snapshot.ticker)):
                self.update(snapshot, times.utc_now_text())

    def update(self, snapshot: TickerSnapshot, received: str) -> None:
        """Have a ticker's files written at the next `write`; received: see `consolidated`."""
        self._pending[snapshot.ticker] = (snapshot, received)

    def forget(self, ticker: str) -> None:
        """Take it out of latest.json; its own files stay as they are."""
        self._texts.pop(ticker, None)
        self._pending.pop(ticker, None)

    def write(self, last: bool = False) -> None:
        """Write what changed; what could not be written stays to be.

        A ticker whose own files cannot be written holds up no other; raises
        OSError where `latest.json` cannot.  last: nobody calls again, so a
        large one is written now.
        """
        left: dict[str, tuple[TickerSnapshot, str]] = {}
        for ticker, (snapshot, received) in self._pending.items():
            try:
                self._texts[ticker] = _entry(snapshot, self.own)
                self._write_ticker(snapshot, received)
            except (ValueError, TypeError, RecursionError) as problem:
                log.error("views of %a cannot be made: %s", ticker, ascii(str(problem)))
            except OSError as problem:
                left[ticker] = (snapshot, received)
                if ticker not in self._failing:  # one line, however long it lasts
                    log.error("views of %a cannot be written, they are tried again: %s", ticker, ascii(str(problem)))
        if self._pending:
            self.current = False
        if not self.current and (last or self._clock() >= self._due):
            text = latest_json(self._texts).encode("ascii")
            atomic.replace(DataFolder(self.root).latest, text)
            self.current = True
            self._due = self._clock() + LARGE_PAUSE if len(text) > LARGE else 0.0
        self.written += len(self._pending) - len(left)
        self._pending, self._failing = left, set(left)

    def _write_ticker(self, snapshot: TickerSnapshot, received: str) -> None:
        folder = DataFolder(self.root).views / folder_name(snapshot.ticker)
        document = consolidated(snapshot, received, self.own)
        metadata = {
            "ticker": snapshot.ticker,
            "timestamp": document["timestamp"],
            "updated_at": f"{received}+00:00",
            "strikes_count": len(document["all_strikes"] or ()),
        }
        # Not made durable one by one: fsyncs are what the journal's clients wait for, and
        # `restore` makes anew what a power cut may have emptied.
        atomic.replace(folder / "snapshot.json", json.dumps(document, indent=2).encode("ascii"), durable=False)
        atomic.replace(folder / "snapshot.csv", strikes_csv(document["all_strikes"]).encode("ascii"), durable=False)
        atomic.replace(folder / "metadata.json", json.dumps(metadata, indent=2).encode("ascii"), durable=False)


def _is_whole(folder: pathlib.Path) -> bool:
    try:
        for name in ("snapshot.json", "metadata.json"):
            json.loads((folder / name).read_bytes())
        return (folder / "snapshot.csv").stat().st_size > 0
    except (OSError, ValueError):
        return False


def _entry(snapshot: TickerSnapshot, own: bool = False) -> str:
    """A ticker's lines of `latest.json`, without the braces around all."""
    document = {snapshot.ticker: snapshot.document(own)}
    document = _finite(document) if own else document
    margins = _indentation(document)
    if margins > MOST_INDENTATION and margins > MOST_TIMES * len(json.dumps(document)):
        return "  " + json.dumps(document, sort_keys=True)[1:-1]
    return json.dumps(document, indent=2, sort_keys=True)[2:-2]


def _finite(document: Any) -> Any:
    """A copy in which null stands for NaN and Infinity, which are no numbers in JSON."""
    return json.loads(json.dumps(document), parse_constant=lambda _: None)


def _indentation(value: dict[str, Any] | list[Any], level: int = 1) -> int:
    """The bytes of line breaks and margins that `json.dumps(value, indent=2)` has."""
    inner = value.values() if isinstance(value, dict) else value
    below = sum(_indentation(child, level + 1) for child in inner if child.__class__ in (dict, list) and child)
    return len(value) * (2 * level + 1) + 2 * level - 1 + below


def latest_json(entries: dict[str, str]) -> str:
    """`latest.json` from each ticker's `_entry`: as `json.dumps(indent=2, sort_keys=True)` of all makes it."""
    return "{\n" + ",\n".join(entries[ticker] for ticker in sorted(entries)) + "\n}" if entries else "{}"


def read_latest(root: pathlib.Path) -> list[TickerSnapshot]:
    """The store as `latest.json` has it; [] where there is none.

    A file that is not readable as such is moved aside, and named in the log.
    """
    path = DataFolder(root).latest
    try:
        documents = json.loads(path.read_bytes())
        return [TickerSnapshot.from_document(ticker, document) for ticker, document in documents.items()]
    except FileNotFoundError:
        return []
    except (ValueError, AttributeError, RecursionError) as problem:
        aside = path.with_name("latest.json.damaged")
        log.error("%s is not readable and now lies at %s: %s", path, aside, ascii(str(problem)))
        path.replace(aside)
        return []
