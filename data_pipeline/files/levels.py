"""Level files: each series' day as a spreadsheet or chart platform reads it, and as a restarted bridge does.

    levels/TICKER/ENDPOINT/YYYY-MM-DD.csv            a line a payload: its own time and numbers, empty where it has none
    levels/TICKER/ENDPOINT/YYYY-MM-DD.strikes.jsonl  a line a minute: the first snapshot's strikes

The day, and the columns date and time, are New York's; timestamp is UTC seconds.
"""

import datetime
import json
from collections.abc import Iterator

from data_pipeline.config import DataFolder
from data_pipeline.files.names import folder_name
from data_pipeline.payloads import reading, times
from data_pipeline.payloads.reading import Strike
from data_pipeline.payloads.records import Gex
from data_pipeline.payloads.times import NEW_YORK

COLUMNS = ("timestamp", "date", "time", *reading.NAMES)
HEAD = (",".join(COLUMNS) + "\n").encode()
HEADS = {".csv": HEAD}  # what a file begins with, by its ending
MINUTE = 60


def folder_of(ticker: str, endpoint: str) -> str:
    """The series' folder, relative to DATA_DIR."""
    return f"{DataFolder.LEVELS}/{folder_name(ticker)}/{folder_name(endpoint)}"


class LevelLines:
    """Payloads → lines of level files; remembers which minute each series had last.  For one thread."""

    def __init__(self) -> None:
        self._minutes: dict[str, int] = {}

    def of_record(self, record: Gex) -> dict[str, bytes]:
        """The lines of a journal record's payload, by file."""
        received = times.seconds_of(record.at) or 0.0
        return self.of(record.ticker, record.series, record.kind, record.data, received)

    def of(self, ticker: str, endpoint: str, kind: str, data: dict[str, object], received: float) -> dict[str, bytes]:
        """The lines of one payload by file; none for a maxchange or where it has no number.  received: UTC seconds."""
        if kind == "maxchange":
            return {}
        moment, values = reading.time_and_values(data, received)
        if not values:
            return {}
        at = datetime.datetime.fromtimestamp(moment, NEW_YORK)
        base = f"{folder_of(ticker, endpoint)}/{at:%Y-%m-%d}"
        numbers = (repr(values[name]) if name in values else "" for name in reading.NAMES)
        found = {f"{base}.csv": f"{moment:.15g},{at:%Y-%m-%d,%H:%M:%S},{','.join(numbers)}\n".encode()}
        minute = int(moment) // MINUTE
        if kind == "snapshot" and data.get("strikes") and self._minutes.get(base) != minute:
            self._minutes[base] = minute
            strikes = [[one.strike, one.volume, one.open_interest] for one in reading.strikes(data["strikes"])]
            if strikes:
                found[f"{base}.strikes.jsonl"] = json.dumps({"minute": minute, "strikes": strikes}).encode() + b"\n"
        return found


def rows(content: bytes) -> Iterator[tuple[float, dict[str, float]]]:
    """(time, value by column) of each whole line of a `.csv`; a line that is none, as a torn one, is passed over."""
    for line in content.decode("ascii", "replace").splitlines()[1:]:
        cells = line.split(",")
        if len(cells) != len(COLUMNS):
            continue
        try:
            values = {name: float(cell) for name, cell in zip(reading.NAMES, cells[3:]) if cell}
            yield float(cells[0]), values
        except ValueError:
            continue


def columns(content: bytes) -> Iterator[tuple[int, list[Strike]]]:
    """(minute, strikes) of each whole line of a `.strikes.jsonl`; what is none is passed over."""
    unknown = (None,) * reading.PRIORS
    for line in content.splitlines():
        try:
            found = json.loads(line)
            yield int(found["minute"]), [Strike(strike, volume, oi, unknown) for strike, volume, oi in found["strikes"]]
        except (ValueError, KeyError, TypeError):
            continue
