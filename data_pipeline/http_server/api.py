"""`/api/…`: questions about today, answered from the board.  One table of routes; OpenAPI is made from it.

A question is the path and its parameters; the answer is JSON, or CSV where
the path ends in `.csv`.  What is wrong with a parameter is a 400 that names
it; a series that nobody has sent today is a 404.
"""

import csv
import datetime
import hashlib
import io
import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from data_pipeline import __version__
from data_pipeline.board import COLUMNS, Board, PastDays, Series
from data_pipeline.board.series import trading_day
from data_pipeline.board.tape import SHOWN
from data_pipeline.files.levels import MINUTE
from data_pipeline.payloads import times

PREFIX = "/api/"
SIDES = ("ask", "bid", "mid")
LIMIT, MOST = 1_000, 10_000  # rows of an answer: usual and at most
MOST_STEP = 86_400  # s
LONGEST_QUERY = 2_000  # characters

Row = dict[str, Any]


class ApiProblem(Exception):
    """A question that has no answer: status, the parameter that is to blame (or None), and a line for the client."""

    def __init__(self, status: int, message: str, parameter: str | None = None):
        super().__init__(message)
        self.status = status
        self.parameter = parameter


@dataclass(frozen=True)
class Parameter:
    """One parameter of a question.  parse: text → value, raises ValueError; required, or it has a default."""

    name: str
    why: str
    schema: Mapping[str, object]
    parse: Callable[[str], Any]
    required: bool = False
    default: Any = None


def _time(text: str) -> float:
    found = times.seconds_of(text)
    if found is None:
        raise ValueError("must be ISO time or Unix seconds")
    return found


def _date(text: str) -> datetime.date:
    if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
        raise ValueError("must be a date, YYYY-MM-DD")
    return datetime.date.fromisoformat(text)


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not low <= int(text[:20]) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(text)

    return parse


def _positive(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e15:
        raise ValueError("must be a number, at least 0")
    return value


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return text

    return parse


_MOMENT = {"type": "string"}
TICKER = Parameter("ticker", "ticker, as in /api/tickers", {"type": "string"}, str.upper, required=True)
ENDPOINT = Parameter("endpoint", "endpoint, as in /api/tickers", {"type": "string"}, str, required=True)
START = Parameter("start", "first time, inclusive: ISO or Unix seconds", _MOMENT, _time, default=0.0)
END = Parameter("end", "last time, exclusive: ISO or Unix seconds", _MOMENT, _time, default=1e11)
SINCE = Parameter("since", "only what is newer than this time", _MOMENT, _time)
AT = Parameter("at", "the time asked about; absent: now", _MOMENT, _time)
DAY = Parameter("day", "a day of /api/days, New York's; absent: today", {"type": "string", "format": "date"}, _date)
STEP = Parameter(
    "step",
    "seconds a row or column stands for; 0: as the feed came",
    {"type": "integer", "minimum": 0, "maximum": MOST_STEP},
    _whole(0, MOST_STEP),
    default=0,
)
MINUTES = Parameter(
    "step",
    "seconds a column stands for, whole minutes",
    {"type": "integer", "minimum": MINUTE, "maximum": MOST_STEP},
    _whole(MINUTE, MOST_STEP),
    default=MINUTE,
)
COUNT = Parameter(
    "limit",
    "rows at most; the newest are given",
    {"type": "integer", "minimum": 1, "maximum": MOST},
    _whole(1, MOST),
    default=LIMIT,
)
SYMBOL = Parameter("symbol", "the underlying; absent: all", {"type": "string"}, str.upper)
SIDE = Parameter("side", "where it was traded; absent: all", {"type": "string", "enum": list(SIDES)}, _one_of(*SIDES))
PREMIUM = Parameter(
    "min_premium", "least premium, in dollars", {"type": "number", "minimum": 0}, _positive, default=0.0
)
MEASURE = Parameter(
    "measure",
    "gamma by volume or by open interest",
    {"type": "string", "enum": ["volume", "oi"]},
    _one_of("volume", "oi"),
    default="volume",
)


@dataclass(frozen=True)
class Answer:
    """What goes back: status, the headers of its own, the body."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class Api:
    """Answers the questions of ROUTES: about today from the board, about other days from their level files.

    now: UTC seconds.
    """

    def __init__(self, board: Board, past: PastDays, now: Callable[[], float]):
        self.board = board
        self.past = past
        self.now = now
        self._life = secrets.token_hex(4)  # of this process: its counts of changes begin anew

    def get(self, path: str, query: str, known_tag: str = "") -> Answer:
        """The answer to a GET.  path: from `/api/` on; query: behind the `?`; known_tag: of If-None-Match."""
        try:
            name, dot, ending = path.removeprefix(PREFIX).partition(".")
            if name == "openapi" and ending == "json":
                return Answer(200, (("Content-Type", "application/json"),), json.dumps(openapi()).encode())
            route = ROUTES.get(name)
            if route is None or ending not in ("", "json", "csv") or (dot and not ending):
                raise ApiProblem(404, "no such question; /api/openapi.json lists them")
            given = values(query, route.parameters)
            # Made from what changed, not from the answer: a poll that has the newest costs no answer at all.
            past = given.get("day") is not None
            changes = self.board.changes(given.get("ticker"), given.get("endpoint"))
            changes = self.board.flow_changes if name == "flow" else changes
            tag = "" if past else self._tag(path, query, changes)
            if tag and knows(known_tag, tag):
                return Answer(304, _caching(tag), b"")
            found = route.ask(self, **given)
            if ending == "csv":
                return Answer(
                    200, (("Content-Type", "text/csv; charset=utf-8"), *_caching(tag)), as_csv(route.rows(found))
                )
            return Answer(200, (("Content-Type", "application/json"), *_caching(tag)), json.dumps(found).encode())
        except ApiProblem as problem:
            body = {"error": str(problem), "parameter": problem.parameter}
            return Answer(problem.status, (("Content-Type", "application/json"),), json.dumps(body).encode())

    def _tag(self, path: str, query: str, changes: int) -> str:
        asked = hashlib.sha256(f"{path}?{query}".encode("utf-8", "surrogateescape")).hexdigest()[:12]
        return f'"{self._life}-{changes}-{asked}"'

    def _series(self, ticker: str, endpoint: str, day: datetime.date | None, question: Callable[[Series], Any]) -> Any:
        if day is not None and day != trading_day(self.now()):
            try:
                series = self.past.series(ticker, endpoint, day)
            except OSError as problem:
                raise ApiProblem(503, f"that day cannot be read: {problem.strerror}", "day") from None
            if series is None:
                raise ApiProblem(404, "nothing is known of this ticker and endpoint on that day", "day")
            return question(series)
        found = self.board.ask(ticker, endpoint, lambda series: (question(series),))
        if found is None:
            raise ApiProblem(404, "nothing was received of this ticker and endpoint today", "ticker")
        return found[0]

    def tickers(self) -> list[Row]:
        """Every series of today: ticker and endpoint."""
        return [{"ticker": ticker, "endpoint": endpoint} for ticker, endpoint in self.board.series()]

    def state(self) -> list[Row]:
        """Every series' last values; `age` in seconds by the payload's own time, null before the first."""
        now = self.now()

        def row(series: Series) -> Row:
            age = None if series.updated is None else round(now - series.updated, 1)
            return {
                "ticker": series.ticker,
                "endpoint": series.endpoint,
                "updated": series.updated,
                "age": age,
                **series.latest(),
            }

        found = [self.board.ask(ticker, endpoint, row) for ticker, endpoint in self.board.series()]
        return [one for one in found if one is not None]

    def flow(
        self, since: float | None, symbol: str | None, side: str | None, min_premium: float, limit: int
    ) -> list[Row]:
        """The flow tape, the newest first: option trades and flow alerts received since the start."""
        return self.board.flow(since or 0.0, symbol, side, min_premium, limit)

    def days(self, ticker: str, endpoint: str) -> list[Row]:
        """The days of a series that can be asked about, the oldest first."""
        return [{"day": day} for day in self.past.days(ticker, endpoint)]

    def strikes(self, ticker: str, endpoint: str, day: datetime.date | None, at: float | None) -> Row:
        """The ladder: gamma by strike, volume and open interest, and by volume 1, 5, 10, 15 and 30 minutes ago."""

        def question(series: Series) -> Row:
            moment: float | None
            now = series.reading("snapshot") if at is None else None
            if now is not None:
                moment, found = now.time, now.strikes
            else:
                moment, found = series.strikes_at(times.LATEST if at is None else at) or (None, ())
            rows = [
                {"strike": s.strike, "volume": s.volume, "oi": s.open_interest, "priors": list(s.priors)} for s in found
            ]
            return {"ticker": ticker, "endpoint": endpoint, "time": moment, "strikes": rows}

        answer: Row = self._series(ticker, endpoint, day, question)
        return answer

    def timeline(
        self,
        ticker: str,
        endpoint: str,
        day: datetime.date | None,
        start: float,
        end: float,
        since: float | None,
        step: int,
        limit: int,
    ) -> Row:
        """Today's columns over time; with a step, the last row of each."""

        def question(series: Series) -> list[tuple[float, Row]]:
            rows: dict[float, tuple[float, Row]] = {}
            for moment, row in series.rows(start if since is None else max(start, since), end):
                if since is None or moment > since:
                    rows[moment // step if step else moment] = (moment, row)
            return list(rows.values())

        rows = self._series(ticker, endpoint, day, question)
        return {
            "ticker": ticker,
            "endpoint": endpoint,
            "more": len(rows) > limit,
            "rows": [{"time": moment, **row} for moment, row in rows[-limit:]],
        }

    def heatmap(self, ticker: str, endpoint: str, day: datetime.date | None, step: int, measure: str) -> Row:
        """strike × time: `values[n]` are the strikes' gammas in column `times[n]`, null where it was not there."""
        if step % MINUTE:
            raise ApiProblem(400, "must be whole minutes", "step")
        grid = self._series(ticker, endpoint, day, Series.grid)
        columns: dict[int, Any] = {minute * MINUTE // step: found for minute, found in grid.items()}
        strikes = sorted({strike for found in columns.values() for strike in found[0]})
        picked = 1 if measure == "volume" else 2
        values = []
        for found in columns.values():
            gamma = dict(zip(found[0], found[picked]))
            column = [gamma.get(strike) for strike in strikes]
            values.append([None if one is None or one != one else one for one in column])
        return {
            "ticker": ticker,
            "endpoint": endpoint,
            "step": step,
            "measure": measure,
            "times": [column * step for column in columns],
            "strikes": strikes,
            "values": values,
        }


@dataclass(frozen=True)
class Route:
    """ask: the method of `Api` that answers; rows: the answer as rows, for CSV."""

    ask: Callable[..., Any]
    parameters: tuple[Parameter, ...]
    rows: Callable[[Any], Sequence[Row]]
    schema: Mapping[str, object]


_TEXT, _NUMBER = {"type": "string"}, {"type": ["number", "null"]}
_ANYTHING = {"type": ["string", "number", "null"]}
_NUMBERS = {name: _NUMBER for name in COLUMNS}


def _object(**properties: object) -> dict[str, object]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _list(items: object) -> dict[str, object]:
    return {"type": "array", "items": items}


def _strike_rows(found: Row) -> list[Row]:
    names = ("1m", "5m", "10m", "15m", "30m")
    return [
        {"strike": s["strike"], "volume": s["volume"], "oi": s["oi"], **dict(zip(names, s["priors"]))}
        for s in found["strikes"]
    ]


def _heat_rows(found: Row) -> list[Row]:
    return [
        {"time": moment, "strike": strike, "gamma": gamma}
        for moment, column in zip(found["times"], found["values"])
        for strike, gamma in zip(found["strikes"], column)
        if gamma is not None
    ]


_SERIES = (TICKER, ENDPOINT)
_NAMED = {"ticker": _TEXT, "endpoint": _TEXT}
_STRIKE = _object(strike=_NUMBER, volume=_NUMBER, oi=_NUMBER, priors=_list(_NUMBER))
ROUTES: Mapping[str, Route] = {
    "tickers": Route(Api.tickers, (), list, _list(_object(**_NAMED))),
    "state": Route(Api.state, (), list, _list(_object(**_NAMED, updated=_NUMBER, age=_NUMBER, **_NUMBERS))),
    "days": Route(Api.days, _SERIES, list, _list(_object(day={"type": "string", "format": "date"}))),
    "strikes": Route(
        Api.strikes, (*_SERIES, DAY, AT), _strike_rows, _object(**_NAMED, time=_NUMBER, strikes=_list(_STRIKE))
    ),
    "timeline": Route(
        Api.timeline,
        (*_SERIES, DAY, START, END, SINCE, STEP, COUNT),
        lambda found: found["rows"],
        _object(**_NAMED, more={"type": "boolean"}, rows=_list(_object(time=_NUMBER, **_NUMBERS))),
    ),
    "flow": Route(
        Api.flow,
        (SINCE, SYMBOL, SIDE, PREMIUM, COUNT),
        list,
        _list(_object(number={"type": "integer"}, time=_NUMBER, **dict.fromkeys(SHOWN, _ANYTHING))),
    ),
    "heatmap": Route(
        Api.heatmap,
        (*_SERIES, DAY, MINUTES, MEASURE),
        _heat_rows,
        _object(
            **_NAMED,
            step={"type": "integer"},
            measure=_TEXT,
            times=_list(_NUMBER),
            strikes=_list(_NUMBER),
            values=_list(_list(_NUMBER)),
        ),
    ),
}


def values(query: str, parameters: Sequence[Parameter]) -> dict[str, Any]:
    """The parameters of a query by name.  Raises ApiProblem (400) that names the first one that does not fit."""
    if len(query) > LONGEST_QUERY:
        raise ApiProblem(400, f"the question has more than {LONGEST_QUERY} characters")
    given: dict[str, str] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name in given:
            raise ApiProblem(400, "is given twice", name)
        given[name] = text
    unknown = set(given) - {one.name for one in parameters}
    if unknown:
        raise ApiProblem(400, "is no parameter of this question", min(unknown))
    found = {}
    for one in parameters:
        text = given.get(one.name, "")
        if not text and one.required:
            raise ApiProblem(400, "is required", one.name)
        try:
            found[one.name] = one.parse(text) if text else one.default
        except ValueError as problem:
            raise ApiProblem(400, str(problem), one.name) from None
    return found


def as_csv(rows: Sequence[Row]) -> bytes:
    """Rows with a header line; null is empty.  Text that a spreadsheet would take for a formula gets an apostrophe."""
    out = io.StringIO(newline="")
    if rows:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({name: _cell(value) for name, value in row.items()})
    return out.getvalue().encode("utf-8", "backslashreplace")


def _cell(value: object) -> object:
    return "'" + value if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _caching(tag: str) -> tuple[tuple[str, str], ...]:
    return (("ETag", tag), ("Cache-Control", "no-cache")) if tag else (("Cache-Control", "no-store"),)


def knows(known: str, tag: str) -> bool:
    """Whether an If-None-Match header names that tag."""
    return tag in (one.strip().removeprefix("W/") for one in known.split(","))


def openapi() -> dict[str, object]:
    """The table of routes as an OpenAPI 3.1 document."""
    problem = _object(error=_TEXT, parameter={"type": ["string", "null"]})
    paths = {}
    for name, route in ROUTES.items():
        responses: dict[str, object] = {
            "200": {"description": "the answer", "content": {"application/json": {"schema": route.schema}}},
            "304": {"description": "as If-None-Match has it"},
        }
        errors = {"400": "a parameter does not fit", "404": "no such series today"}
        for status, why in errors.items():
            responses[status] = {"description": why, "content": {"application/json": {"schema": problem}}}
        paths[PREFIX + name] = {
            "get": {
                "operationId": name,
                "summary": (route.ask.__doc__ or "").strip().splitlines()[0],
                "parameters": [
                    {"name": p.name, "in": "query", "required": p.required, "description": p.why, "schema": p.schema}
                    for p in route.parameters
                ],
                "responses": responses,
            }
        }
    return {"openapi": "3.1.0", "info": {"title": "GEX bridge", "version": __version__}, "paths": paths}
