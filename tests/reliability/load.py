"""Mixed load that remembers what was acknowledged, and the check that all of it is there, once."""

import collections
import json
import re
import threading

from tests.helpers.support import RunningBridge, gex_payload, read, request, status_of

# Snapshots with more or fewer strikes than they say.
HALVES = (
    "SELECT count(*) FROM gex_snapshots_all AS s LEFT JOIN (SELECT ticker, timestamp, endpoint, count(*) AS n"
    " FROM gex_strikes_all GROUP BY ALL) AS k"
    " USING (ticker, timestamp, endpoint) WHERE s.strikes_count <> coalesce(k.n, 0)"
)


def acknowledgements() -> dict[str, list]:
    return {"gex": [], "uw": [], "link": []}


def add(to: dict[str, list], more: dict[str, list]) -> None:
    for kind, found in more.items():
        to[kind] += found


class Load:
    """Clients that post to every endpoint until they are told to stop; each payload is unique.

    What got a 2xx is in `acknowledged`, by kind: gex → (ticker, timestamp),
    uw → serial number, link → (id, url).
    """

    def __init__(
        self, bridge: RunningBridge, clients: int, first: int = 0, pause: float = 0.0, endpoints: int = 1 << 40
    ):
        """pause: s between a client's posts.  endpoints: how many there are; with few a refused post may cost a key."""
        self.bridge = bridge
        self.acknowledged = acknowledgements()
        self.refused: list[int] = []
        self.first = first
        self.pause = pause
        self.endpoints = endpoints
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,), name=f"Load-{n}") for n in range(clients)]

    def start(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> "Load":
        return self.start()

    def __exit__(self, *exc) -> None:
        self.stop()

    @property
    def count(self) -> int:
        return sum(map(len, self.acknowledged.values()))

    def _run(self, client: int) -> None:
        serial = self.first
        while not self._stop.is_set():
            serial += 1
            try:
                self._post(client, serial)
            except OSError:  # the server is gone; nothing was acknowledged
                if self._stop.wait(0.005):
                    return
            if self.pause and self._stop.wait(self.pause):
                return

    def _post(self, client: int, serial: int) -> None:
        ticker, timestamp = f"T{client}", 1_700_000_000 + serial
        if serial % 4 == 1:
            unique = f"{client}-{serial}"
            if self._accepted("/uw", {"topic": "load", "serial": unique}):
                self.acknowledged["uw"].append(unique)
        elif serial % 16 == 2:
            url = f"https://example.com/{client}-{serial}.json"
            answer = self._accepted("/gex_history_url", {"url": url, "ticker": ticker, "endpoint": "gex_zero"})
            if answer:
                self.acknowledged["link"].append((answer["id"], url))
        else:
            kind = "majors" if serial % 4 == 3 else "snapshot"
            payload = gex_payload(ticker, timestamp, kind, endpoint=f"gex_{kind}", strikes=5)
            # A majors' own timestamp wins in the combined view, so every payload has a key of its own.
            if kind == "snapshot":
                payload["endpoint"] = f"gex_{serial % self.endpoints}"
            if self._accepted("/gex", payload):
                self.acknowledged["gex"].append((ticker, timestamp))

    def _accepted(self, path: str, payload: dict) -> dict | None:
        answer = self.bridge.send(request(path, json.dumps(payload).encode()))
        status = status_of(answer)
        if status in (200, 202):
            return json.loads(answer.partition(b"\r\n\r\n")[2])
        if status:
            self.refused.append(status)
        return None


def mark(kind: str, item) -> str:
    return {"uw": lambda: item, "gex": lambda: f"{item[0]}@{item[1]}", "link": lambda: item[1]}[kind]()


def marks(content: bytes) -> set[str]:
    """What tells the payloads in a request or a record from each other, as `mark` makes it of an acknowledgement."""
    found = {m.decode() for m in re.findall(rb'"serial": "(\d+-\d+)"', content)}
    found |= {m.decode() for m in re.findall(rb"https://example\.com/\d+-\d+\.json", content)}
    for ticker, timestamp in re.findall(
        rb'"ticker": "(T\d+)", "kind": "\w+", "endpoint": "\w+", "received_at": "[^"]+",'
        rb' "data": \{"timestamp": (\d+)',
        content,
    ):
        found.add(f"{ticker.decode()}@{timestamp.decode()}")
    return found


def check_everything_once(bridge: RunningBridge, acknowledged: dict[str, list]) -> None:
    """After a clean stop: each acknowledged payload has one row, one spot line, one depth line; every file is whole.

    A payload whose acknowledgement was cut off may be there as well, once.
    Snapshots count as their readers see them: live tables and lake as one.
    """
    spots = [json.loads(line)["timestamp"] for line in _lines(bridge.data_dir / "raw/gex/spot_series.jsonl")]
    depths: list[tuple[str, int]] = []
    for file in (bridge.data_dir / "depth").rglob("*.jsonl"):
        depths += [(file.parent.name, json.loads(line)["timestamp"]) for line in _lines(file)]
    assert len(set(depths)) == len(depths), "a depth line stands twice"
    missing = set(acknowledged["gex"]) - set(depths)
    assert not missing, f"{len(missing)} depth lines are missing"
    differing = collections.Counter(spots)
    differing.subtract(timestamp for _, timestamp in depths)
    assert not any(differing.values()), f"spot and depth lines differ: {[d for d in differing.items() if d[1]][:5]}"

    payloads = read(
        bridge.database, "SELECT ticker, json_extract(raw_payload_json, '$.timestamp')::BIGINT FROM gex_snapshots_all"
    )
    assert len(set(payloads)) == len(payloads), "a snapshot row stands twice"
    missing = set(acknowledged["gex"]) - set(payloads)
    assert not missing, f"{len(missing)} snapshot rows are missing: {sorted(missing)[:5]}"
    torn = read(bridge.database, HALVES)[0][0]
    assert not torn, f"{torn} snapshots have other strikes than they came with"

    serials = [
        s
        for (s,) in read(
            bridge.database, "SELECT json_extract_string(payload_json, '$.serial') FROM universal_webhooks ORDER BY id"
        )
    ]
    assert len(set(serials)) == len(serials), "a webhook row stands twice"
    assert not set(acknowledged["uw"]) - set(serials), "webhook rows are missing"

    links = read(bridge.database, "SELECT id, url FROM gex_history_queue")
    assert len(set(links)) == len(links), "a queue row stands twice"
    assert not set(acknowledged["link"]) - set(links), "queue rows are missing"

    latest = json.loads((bridge.data_dir / "raw/gex/latest.json").read_bytes())
    for ticker in {ticker for ticker, _ in acknowledged["gex"]}:
        assert ticker in latest
        json.loads((bridge.data_dir / "gex" / ticker / "snapshot.json").read_bytes())
    leftovers = [p for p in bridge.data_dir.rglob("*") if p.name.endswith(".tmp~")]
    assert not leftovers, f"temporary files are left: {leftovers}"


def _lines(path) -> list[str]:
    text = path.read_text() if path.exists() else ""
    assert not text or text.endswith("\n"), f"{path} ends in half a line"
    return text.splitlines()
