"""Records of a history file into rows: DuckDB's JSON reader first, the exact one for what it does not take.

What a record becomes (GEXBot's classic chain): its row of
`gex_bridge_snapshots` as if it had been posted, of kind `snapshot`, without
`received_at`.  `raw_payload_json` holds the record without `strikes` and
`max_priors` where these are whole in the strikes' rows and in
`max_priors_json`, which are 19 of every 20 bytes.  Where a strike has fields
of its own, is no list or was sent twice, or the priors are no list, they stay
in `raw_payload_json`: nothing of a record vanishes.
"""

import json
import pathlib
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.lake import history_slow
from data_pipeline.payloads import reading

# Of the DuckDB of each thread; a piece takes far less.
MEMORY_LIMIT = "200MB"
THREADS = 2

# Bytes of records that become rows at once.  Smaller ones cost a query's planning more often, larger ones memory.
PIECE = 4 << 20

# Records that DuckDB hands over at once: each may be as long as RECORD_LIMIT.
HANDED_OVER = 32

# The table's number -> the names it may have in a record; the first that is a number counts.
NAMES = {**reading.NAMES, "spot": ("spot", "spot_price")}

# The fields of a strike that is an object: the column -> the names it may have.
_OBJECT = {"strike": ("strike",), "gamma_now": ("gex_vol", "gamma_now", "gex"), "vanna": ("gex_oi", "vanna")}
_PAST = ("priors", "history")

_FIELDS = json.dumps(
    {
        "timestamp": "VARCHAR",
        "ticker": "VARCHAR",
        **{name: "DOUBLE" for names in NAMES.values() for name in names},
        "max_priors": "JSON",
        "data": "JSON",
    }
)

_ENTRIES = json.dumps({"timestamp": "VARCHAR", "strikes": [["JSON"]]})

_MACROS = (
    # What json_transform and the cells of a list give for JSON's null.
    "CREATE MACRO absent(x) AS x IS NULL OR x = 'null'",
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

# Without its strikes, 19 of 20 bytes, a record is parsed much faster.  A list of numbers goes on to the next quotation
# mark; where that guess is wrong, what is left is no JSON, and the whole record is parsed instead.  The guess is only
# made for records of which `whole` says that these strikes are the record's own (one key of that name) and all rows.
_WITHOUT_STRIKES = """left(json, begin - 1) || tail[position('"' in tail):]"""

_RECORDS = f"""
    SELECT n, json IS NOT NULL AS is_json, x IS NOT NULL AS is_object, x.timestamp AS given,
        json_type(x.data) = 'ARRAY' AS is_wrapper, upper(x.ticker) AS named, seconds(x.timestamp) AS timestamp,
        {", ".join(f"coalesce({', '.join(f'finite(x.{n})' for n in names)}) AS {c}" for c, names in NAMES.items())},
        CASE WHEN json_type(x.max_priors) = 'ARRAY' THEN spaced(x.max_priors) ELSE '[]' END AS max_priors_json,
        CASE WHEN json_type(x.max_priors) = 'ARRAY' THEN json_merge_patch(slim, '{{"max_priors": null}}')
            ELSE slim END AS raw_payload_json
    FROM (SELECT n, json, json_transform(slim, '{_FIELDS}') AS x, slim
        FROM (SELECT n, json, CASE WHEN n NOT IN (SELECT n FROM whole) THEN json
                WHEN json_valid(rest) AND NOT contains(rest, '"strikes"') THEN rest
                ELSE json_merge_patch(json, '{{"strikes": null}}') END AS slim
            FROM (SELECT n, json, {_WITHOUT_STRIKES} AS rest
                FROM (SELECT n, json, begin, substr(json, begin + length('"strikes"')) AS tail
                    FROM (SELECT n, json, position('"strikes"' in json) AS begin FROM piece)))))
    ORDER BY n"""

# Every entry of every list of strikes.  exact: its row has all that was sent.
_STRIKES = f"""
    SELECT n, timestamp, strike, gamma_now, vanna,
        {", ".join(f"finite(past[{i + 1}]) AS gamma_{m}m" for i, m in enumerate((1, 5, 10, 15, 30)))},
        CASE WHEN len(past) > 0 THEN spaced(past_json) END AS history_json,
        coalesce(len(entry) BETWEEN 2 AND 4 AND strike IS NOT NULL
            AND (gamma_now IS NOT NULL OR absent(entry[2])) AND (vanna IS NOT NULL OR absent(entry[3]))
            AND (past IS NOT NULL OR absent(entry[4])), false) AS exact
    FROM (
        SELECT n, timestamp, entry, CASE WHEN len(entry) >= 2 THEN finite(TRY_CAST(entry[1] AS DOUBLE)) END AS strike,
            finite(TRY_CAST(entry[2] AS DOUBLE)) AS gamma_now, finite(TRY_CAST(entry[3] AS DOUBLE)) AS vanna,
            json_transform(entry[4], '["DOUBLE"]') AS past, entry[4] AS past_json
        FROM (SELECT n, timestamp, unnest(strikes) AS entry
            FROM (SELECT n, seconds(x.timestamp) AS timestamp, x.strikes AS strikes
                FROM (SELECT n, json_transform(json, '{_ENTRIES}') AS x FROM piece)))
        WHERE timestamp IS NOT NULL)"""


def _of_object(column: str) -> str:
    return f"coalesce({', '.join(f'finite(TRY_CAST(e ->> {name!r} AS DOUBLE))' for name in _OBJECT[column])})"


# Strikes that are objects; they are never all of what was sent.
_OBJECTS = f"""
    SELECT n, timestamp, {", ".join(f"{_of_object(column)} AS {column}" for column in _OBJECT)},
        {", ".join(f"finite(past[{i + 1}]) AS gamma_{m}m" for i, m in enumerate((1, 5, 10, 15, 30)))},
        CASE WHEN len(past) > 0 THEN spaced(past_json) END AS history_json, false AS exact
    FROM (SELECT *, json_transform(past_json, '["DOUBLE"]') AS past
        FROM (SELECT n, timestamp, e, coalesce({", ".join(f"e -> {name!r}" for name in _PAST)}) AS past_json
            FROM (SELECT n, seconds(json ->> 'timestamp') AS timestamp,
                    unnest(json_transform(json -> 'strikes', '["JSON"]')) AS e
                FROM piece WHERE n IN (SELECT n FROM odd))
            WHERE timestamp IS NOT NULL AND json_type(e) = 'OBJECT'))
    WHERE strike IS NOT NULL"""


class NotTaken(Exception):
    """DuckDB's reader does not take this file, or may not have understood it."""


class Rows(NamedTuple):
    """records: one row each, `n` counts from 1, `timestamp` null for a bad one; strikes: of the good ones, in order;
    counts: `n` of those that have strikes, and how many different ones, `strikes_count`.
    """

    records: pa.Table
    strikes: pa.Table
    counts: pa.Table


def fast(path: pathlib.Path) -> Iterator[Rows]:
    """The rows as DuckDB reads the file; raises NotTaken, also after some were handed out: then drop them all."""
    with open(path, "rb") as file:
        start = b"" if history_slow.is_gzip(path) else file.read(1 << 12).lstrip()[:1]
    shape = {b"[": "array", b"{": "newline_delimited"}.get(start, "auto")
    plain = "".join(f"[{c}]" if c in "*?[" else c for c in str(path.absolute()))  # a path is a pattern to DuckDB
    try:
        with _connection() as con:
            reader = con.sql(
                "SELECT json FROM read_json_objects($path, format = $shape, compression = $packed,"
                " maximum_object_size = $limit)",
                params={
                    "path": plain,
                    "shape": shape,
                    "packed": "gzip" if history_slow.is_gzip(path) else "uncompressed",
                    "limit": history_slow.RECORD_LIMIT,
                },
            ).to_arrow_reader(HANDED_OVER)
            texts = (batch.column(0).cast(pa.string()) for batch in reader)
            for rows in _parsed(texts, trusted=True):
                if pc.any(rows.records["is_wrapper"]).as_py():
                    raise NotTaken("the records are inside another object")
                yield rows
    except (duckdb.Error, pa.ArrowException, OSError) as problem:  # OSError: what DuckDB says through Arrow
        raise NotTaken(str(problem)) from problem


def slow(path: pathlib.Path) -> Iterator[Rows]:
    """The rows as the exact reader finds them."""

    def texts() -> Iterator[pa.Array]:
        some, size = [], 0
        for record in history_slow.records(path):
            some.append(record if record is None or _is_utf8(record) else None)
            size += len(record or b"") + 16
            if size > PIECE:
                yield pa.array(some, pa.binary()).cast(pa.string())
                some, size = [], 0
        yield pa.array(some, pa.binary()).cast(pa.string())

    yield from _parsed(texts(), trusted=False)


def _parsed(texts: Iterable[pa.Array], trusted: bool) -> Iterator[Rows]:
    """The rows of each piece, in order, made by THREADS threads one piece ahead of who asks."""
    parser, first = _Parser(), 1
    waiting: deque[Future[Rows]] = deque()
    with ThreadPoolExecutor(THREADS, thread_name_prefix="history-parse") as pool:
        for piece in _pieces(texts):
            waiting.append(pool.submit(parser.rows, piece, first, trusted))
            first += len(piece)
            if len(waiting) > THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _pieces(texts: Iterable[pa.Array]) -> Iterator[pa.ChunkedArray]:
    """The same texts in pieces of about PIECE bytes, however long each text is."""
    some: list[pa.Array] = []
    size = 0
    for batch in texts:
        start = 0
        for i, length in enumerate(pc.binary_length(batch).to_pylist()):
            size += (length or 0) + 16
            if size > PIECE:
                yield pa.chunked_array([*some, batch.slice(start, i + 1 - start)], pa.string())
                some, size, start = [], 0, i + 1
        some.append(batch.slice(start))
    if sum(map(len, some)):
        yield pa.chunked_array(some, pa.string())


class _Parser:
    """Turns pieces into rows; each thread has an in-memory DuckDB of its own."""

    def __init__(self) -> None:
        self._own = threading.local()

    def rows(self, texts: pa.ChunkedArray, first: int, trusted: bool) -> Rows:
        """The rows of these records, the first of which is number `first`; trusted: DuckDB has read them as JSON."""
        try:
            return self._rows(texts, first, trusted)
        except duckdb.OutOfMemoryException:
            # Strikes of two digits take a hundred times their text; by halves it fits, or the record alone is to blame.
            half = len(texts) // 2
            if not half:
                return self._rows(pa.chunked_array([pa.nulls(1, pa.string())]), first, True)
            parts = self.rows(texts[:half], first, trusted), self.rows(texts[half:], first + half, trusted)
            return Rows(*(pa.concat_tables(tables) for tables in zip(*parts)))

    def _rows(self, texts: pa.ChunkedArray, first: int, trusted: bool) -> Rows:
        if not hasattr(self._own, "con"):
            self._own.con = _connection(threads="1")
        con = self._own.con
        piece = pa.table({"n": pa.array(range(first, first + len(texts)), pa.int64()), "json": texts})
        con.register("piece", piece)
        if not trusted:
            # What Python reads may still be none to DuckDB, as half of a surrogate pair.
            piece = con.sql("SELECT n, CASE WHEN json_valid(json) THEN json END AS json FROM piece").to_arrow_table()
            con.register("piece", piece)
        strikes = con.sql(_STRIKES).to_arrow_table()
        counts = _counts(strikes)
        entries = strikes.group_by("n").aggregate([("exact", "min"), ([], "count_all")]).join(counts, "n")
        whole = pc.and_(entries["exact_min"], pc.equal(entries["count_all"], entries["strikes_count"]))
        con.register("whole", entries.filter(whole).select(["n"]))
        if not pc.all(whole).as_py():
            con.register("odd", entries.filter(pc.invert(whole)).select(["n"]))
            strikes = pa.concat_tables([strikes, con.sql(_OBJECTS).to_arrow_table()])
            strikes = strikes.filter(strikes["strike"].is_valid())
            counts = _counts(strikes)
        return Rows(con.sql(_RECORDS).to_arrow_table(), strikes.drop_columns(["exact"]), counts)


def _counts(strikes: pa.Table) -> pa.Table:
    distinct = strikes.group_by(["n", "strike"]).aggregate([])
    return distinct.group_by("n").aggregate([([], "count_all")]).rename_columns(["n", "strikes_count"])


def _connection(**more: Any) -> duckdb.DuckDBPyConnection:
    settings = {
        "threads": str(THREADS),
        "memory_limit": MEMORY_LIMIT,
        "temp_directory": "",
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
    }
    con = duckdb.connect(config=settings | more)
    for statement in ("SET TimeZone = 'UTC'", *_MACROS):  # ISO text without an offset is UTC
        con.execute(statement)
    return con


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
