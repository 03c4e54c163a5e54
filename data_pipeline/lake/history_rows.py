"""Records of a history file, as JSON texts, into rows: DuckDB parses, Arrow tables come out.

What a record becomes (GEXBot's classic chain): its row of
`gex_bridge_snapshots` as if it had been posted, of kind `snapshot`, without
`received_at`.  `raw_payload_json` holds the record without `strikes` and
`max_priors`: these are in the strikes and in `max_priors_json` and would be
19 of every 20 bytes; all else that the provider sends, known or not, is kept.
"""

import array
import itertools
import json
import re
import threading

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.lake.history_pieces import Piece

# The table's number -> the names it may have in a record; the first that is a number counts.
NAMES = {
    "spot": ("spot", "spot_price"),
    "zero_gamma": ("zero_gamma",),
    "net_gex_vol": ("sum_gex_vol", "net_gex_vol", "net_gex"),
    "net_gex_oi": ("sum_gex_oi", "net_gex_oi"),
    "major_pos_vol": ("major_pos_vol", "mpos_vol"),
    "major_neg_vol": ("major_neg_vol", "mneg_vol"),
    "major_pos_oi": ("major_pos_oi", "mpos_oi"),
    "major_neg_oi": ("major_neg_oi", "mneg_oi"),
    "delta_risk_reversal": ("delta_risk_reversal",),
}

_STRIKES_KEY = re.compile(rb'"strikes"\s*:\s*\[')

_FIELDS = json.dumps(
    {"timestamp": "VARCHAR", **{name: "DOUBLE" for names in NAMES.values() for name in names}, "max_priors": "JSON"}
)

_ENTRIES = json.dumps({"timestamp": "VARCHAR", "strikes": [["JSON"]]})

_MACROS = (
    # NaN and infinity are no numbers.
    "CREATE MACRO finite(x) AS CASE WHEN isfinite(x) THEN x END",
    # As json.dumps writes a list of numbers; texts may hold commas of their own.
    "CREATE MACRO spaced(x) AS CASE WHEN contains(x, '\"') THEN x ELSE replace(x, ',', ', ') END",
    # Seconds from seconds, milliseconds (above 1e11) or ISO text; null for what is no time between 1970 and 5138.
    "CREATE MACRO number_seconds(x) AS CASE WHEN x > 1e11 THEN x / 1000 ELSE x END",
    "CREATE MACRO in_range(x) AS CASE WHEN x >= 0 AND x <= 1e11 THEN CAST(trunc(x) AS BIGINT) END",
    "CREATE MACRO iso_seconds(t) AS CASE WHEN isfinite(t) THEN epoch_us(t) / 1000000 END",
    "CREATE MACRO seconds(t) AS in_range(coalesce(number_seconds(TRY_CAST(t AS DOUBLE)),"
    " iso_seconds(TRY_CAST(t AS TIMESTAMPTZ))))",
)

_RECORDS = f"""
    SELECT n, is_json, x IS NOT NULL AS is_object, x.timestamp AS given, seconds(x.timestamp) AS timestamp,
        {", ".join(f"coalesce({', '.join(f'finite(x.{n})' for n in names)}) AS {c}" for c, names in NAMES.items())},
        CASE WHEN json_type(x.max_priors) = 'ARRAY' THEN spaced(x.max_priors) ELSE '[]' END AS max_priors_json,
        raw_payload_json
    FROM (SELECT n, json IS NOT NULL AS is_json, json_transform(rest, '{_FIELDS}') AS x,
        json_merge_patch(rest, '{{"strikes": null, "max_priors": null}}') AS raw_payload_json
        FROM (SELECT n, json, CASE WHEN json_valid(rest) THEN rest ELSE json END AS rest FROM piece))"""

_STRIKES = f"""
    SELECT n, timestamp, strike, gamma_now, vanna,
        {", ".join(f"finite(past[{i + 1}]) AS gamma_{m}m" for i, m in enumerate((1, 5, 10, 15, 30)))},
        CASE WHEN len(past) > 0 THEN spaced(past_json) END AS history_json
    FROM (
        SELECT n, timestamp, finite(TRY_CAST(entry[1] AS DOUBLE)) AS strike,
            finite(TRY_CAST(entry[2] AS DOUBLE)) AS gamma_now, finite(TRY_CAST(entry[3] AS DOUBLE)) AS vanna,
            json_transform(entry[4], '["DOUBLE"]') AS past, entry[4] AS past_json
        FROM (SELECT n, timestamp, unnest(strikes) AS entry
            FROM (SELECT n, seconds(x.timestamp) AS timestamp, x.strikes AS strikes
                FROM (SELECT n, json_transform(json, '{_ENTRIES}') AS x FROM piece)))
        WHERE timestamp IS NOT NULL AND len(entry) >= 2)
    WHERE strike IS NOT NULL"""


class NotAllJson(ValueError):
    """A piece that was cut without parsing has a record that is not JSON."""


class Parser:
    """Turns pieces into rows; each thread has an in-memory DuckDB of its own."""

    def __init__(self, memory_limit: str):
        self._settings = {
            "threads": "1",
            "memory_limit": memory_limit,
            "temp_directory": "",
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
        }
        self._own = threading.local()

    def rows(self, piece: Piece, first: int) -> tuple[pa.Table, pa.Table]:
        """The records (`n` from `first` on; `timestamp` null for a bad one) and their strikes, in order.

        Raises NotAllJson for a piece that is not exact and must be cut again.
        """
        con = self._connection()
        numbers = pa.array(range(first, first + len(piece.records)), pa.int64())
        rest = _texts([record and _without_strikes(record) for record in piece.records])
        try:
            texts = _texts(piece.records)
            if piece.exact:
                # What Python reads may still be none to DuckDB, as half of a surrogate pair.
                con.register("texts", pa.table({"json": texts}))
                texts = con.sql("SELECT CASE WHEN json_valid(json) THEN json END FROM texts").to_arrow_table().column(0)
            con.register("piece", pa.table({"n": numbers, "json": texts, "rest": rest}))
            return con.sql(_RECORDS).to_arrow_table(), con.sql(_STRIKES).to_arrow_table()
        except (pa.ArrowInvalid, duckdb.InvalidInputException) as problem:
            if piece.exact:
                raise
            raise NotAllJson(str(problem)) from problem

    def _connection(self):
        if not hasattr(self._own, "con"):
            self._own.con = duckdb.connect(config=self._settings)
            for statement in ("SET TimeZone = 'UTC'", *_MACROS):  # ISO text without an offset is UTC
                self._own.con.execute(statement)
        return self._own.con


def _without_strikes(record: bytes) -> bytes | None:
    """The record's text without its `strikes`, 19 of 20 bytes; None where they cannot be told by their look.

    A list of numbers goes on to the next quotation mark.  Where that guess is
    wrong, what is left is no JSON (or has no strikes to begin with), and the
    whole record is parsed instead: it only saves time.
    """
    begin = _STRIKES_KEY.search(record)
    end = record.find(b'"', begin.end()) if begin else -1
    return record[: begin.start()] + record[end:] if end > 0 else None


def _texts(records: list[bytes | None]) -> pa.Array:
    """As text; null for None and for bytes that are no UTF-8."""
    joined = b"".join(record or b"" for record in records)
    ends = array.array("i", itertools.accumulate((len(record or b"") for record in records), initial=0))
    missing = [record is None for record in records]
    try:
        joined.decode()
    except UnicodeDecodeError:
        missing = [record is None or not _is_utf8(record) for record in records]
        return pa.array([None if gone else record for gone, record in zip(missing, records)], pa.string())
    whole = pa.Array.from_buffers(pa.string(), len(records), [None, pa.py_buffer(ends), pa.py_buffer(joined)])
    return pc.if_else(pa.array(missing), pa.scalar(None, pa.string()), whole) if any(missing) else whole


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
