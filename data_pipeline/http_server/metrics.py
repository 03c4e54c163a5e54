"""The server's status as Prometheus text, made by prometheus-client.

Every value comes from the status dictionary when it is asked for; nothing is
kept here.  Labels are bounded: endpoints and outcomes are the server's own
words, and tickers, which clients choose, are only counted.  Names and units:
https://prometheus.io/docs/practices/naming/.
"""

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prometheus_client.core import Metric

# name -> (path in the status, kind, help); kind c counts up since the start, g goes up and down.
_SINGLE = {
    "uptime_seconds": ("uptime_seconds", "g", "time since the server started"),
    "journal_position": ("journal position", "g", "number of the last acknowledged record"),
    "journal_bytes": ("journal bytes", "g", "size of the journal's files"),
    "journal_segments": ("journal segments", "g", "number of the journal's files"),
    "journal_failures": ("journal failed", "c", "appends that failed; none of them was acknowledged"),
    "journal_healthy": ("journal healthy", "g", "1 while the journal can be written, else 0"),
    "loader_position": ("loader position", "g", "number of the last record in the database"),
    "loader_lag_records": ("loader lag_records", "g", "acknowledged records that are not in the database yet"),
    "loader_lag_seconds": ("loader lag_seconds", "g", "age of the oldest record that is not in the database yet"),
    "loader_idle_seconds": ("loader idle_seconds", "g", "time records have waited without the loader trying"),
    "loader_sessions": ("loader sessions", "c", "times the database was opened"),
    "loader_failed_sessions": ("loader failed_sessions", "c", "tries to load that failed; the records wait"),
    "loader_busy_retries": ("loader busy_retries", "c", "times another process had the database"),
    "loader_set_aside_records": ("loader set_aside", "c", "records that could not be loaded and were set aside"),
    "loader_last_session_seconds": ("loader last_session_seconds", "g", "length of the last session"),
    "loader_records": ("loader records", "c", "records that were loaded into the database"),
    "files_position": ("files position", "g", "number of the last record in the files"),
    "files_views_written": ("files views_written", "c", "files that were replaced"),
    "files_lines_appended": ("files lines_appended", "c", "lines that were appended to files"),
    "files_lag_records": ("files lag_records", "g", "acknowledged records that are not in the files yet"),
    "files_lag_seconds": ("files lag_seconds", "g", "age of the oldest record that is not in the files yet"),
    "depth_position": ("depth position", "g", "number of the last record in the depth files"),
    "depth_lag_records": ("depth lag_records", "g", "acknowledged records that are not in the depth files yet"),
    "depth_lag_seconds": ("depth lag_seconds", "g", "age of the oldest record that is not in the depth files yet"),
    "depth_queue_events": ("depth queue", "g", "depth events that wait to be written"),
    "discord_queued_messages": ("discord queued", "g", "Discord messages that wait to be sent"),
    "discord_refused": ("discord refused", "g", "1 once Discord refused the token or the channel, else 0"),
    "poller_failing_jobs": ("poller failing", "g", "polls whose last try failed"),
    "refresher_failing_jobs": ("refresher failing", "g", "status files whose last refresh failed"),
    "downloads_waiting": ("downloads waiting", "g", "history downloads that wait"),
    "downloads_running": ("downloads running", "g", "history downloads that run"),
    "dashboard_down": ("dashboard down", "g", "1 while the dashboard is held to be down, else 0"),
    "importer_current_link": ("importer current", "g", "id of the history link that is being imported"),
    "writer_running": ("writer running", "g", "1 while the process runs that writes tables and files, else 0"),
    "writer_restarts": ("writer restarts", "c", "times that process had to be started again"),
    "restarted_threads": ("server restarted_threads", "c", "threads that answer requests and had to be started again"),
    "set_aside_records": ("set_aside", "c", "records that the loader or the files set aside"),
    "disk_free_bytes": ("disk free_bytes", "g", "free space where the data folder is"),
    "ready": ("ready", "g", "1 while GET /ready says 200, else 0"),
    "tickers": ("ticker_count", "g", "tickers that payloads came for"),
}

# name -> (path, kind, label, help): each number below the path with its name as the label; none that _SINGLE has.
_LABELLED = {
    "depth_events": ("depth", "c", "outcome", "depth events by what became of them"),
    "discord_events": ("discord", "c", "outcome", "Discord messages by what became of them"),
    "refresher_events": ("refresher", "c", "outcome", "refreshes of the status files by what became of them"),
    "poller_events": ("poller", "c", "outcome", "polls of the GEXBot API by what became of them"),
    "downloads_events": ("downloads", "c", "outcome", "history downloads by what became of them"),
    "importer_events": ("importer", "c", "outcome", "history links by what became of their import"),
    "loader_left_out_records": ("loader left_out", "c", "reason", "records or strikes that make no row, by reason"),
    "dashboard_events": ("dashboard", "c", "outcome", "hand-overs to the dashboard by what became of them"),
    "history_queue_links": ("history", "g", "status", "history links in the queue by status"),
}

# Should a part ever count by something a client chooses, no more than these go out.
MOST_LABELS = 50


def render(status: dict[str, Any]) -> bytes:
    """Prometheus text (see CONTENT_TYPE_LATEST of prometheus-client) of a status; what is absent from it is left out.

    Raises nothing for a status of another shape: values that are no numbers are left out too.
    """
    # Imported here: it is not needed to start.
    import prometheus_client

    registry = prometheus_client.CollectorRegistry()
    registry.register(_Collector(status))
    return prometheus_client.generate_latest(registry)


def content_type() -> str:
    import prometheus_client

    return prometheus_client.CONTENT_TYPE_LATEST


class _Collector:
    def __init__(self, status: dict[str, Any]):
        self._status = status

    def collect(self) -> "Iterator[Metric]":
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        family = {"c": CounterMetricFamily, "g": GaugeMetricFamily}
        if version := self._status.get("version"):
            info = GaugeMetricFamily("gexbridge_build_info", "1, with the version", labels=["version"])
            info.add_metric([str(version)], 1)
            yield info
        for name, (path, kind, text) in _SINGLE.items():
            value = _number(self._find(path))
            if value is not None:
                yield family[kind](f"gexbridge_{name}", text, value=value)
        for name, (path, kind, label, text) in _LABELLED.items():
            counts = _numbers(
                self._find(path), without={single.removeprefix(f"{path} ") for single, _, _ in _SINGLE.values()}
            )
            if counts:
                made = family[kind](f"gexbridge_{name}", text, labels=[label])
                for word, value in counts.items():
                    made.add_metric([word], value)
                yield made
        yield from self._requests()
        yield from self._last_payload()

    def _requests(self) -> "Iterator[Metric]":
        from prometheus_client.core import CounterMetricFamily

        requests = self._status.get("requests")
        if isinstance(requests, dict):
            made = CounterMetricFamily(
                "gexbridge_requests", "answers by endpoint and status", labels=["endpoint", "status"]
            )
            for endpoint, answers in list(requests.items())[:MOST_LABELS]:
                for code, value in _numbers(answers).items():
                    made.add_metric([str(endpoint), code], value)
            yield made

    def _last_payload(self) -> "Iterator[Metric]":
        """Not one a ticker, whose names clients choose: the youngest tells whether anything comes at all."""
        from prometheus_client.core import GaugeMetricFamily

        tickers = self._status.get("tickers")
        each = tickers.values() if isinstance(tickers, dict) else ()
        ages = [age for t in each if isinstance(t, dict) and (age := _number(t.get("age_seconds"))) is not None]
        if ages:
            name = "gexbridge_last_payload_age_seconds"
            yield GaugeMetricFamily(name, "time since the last payload of any ticker", value=min(ages))

    def _find(self, path: str) -> object:
        value: object = self._status
        for step in path.split():
            value = value.get(step) if isinstance(value, dict) else None
        return value


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (bool, int, float)) else None


def _numbers(value: object, without: Collection[str] = ()) -> dict[str, float]:
    """The numbers of a dictionary, at most MOST_LABELS; names as text."""
    items = value.items() if isinstance(value, dict) else ()
    found = {str(k): number for k, v in items if k not in without and (number := _number(v)) is not None}
    return dict(list(found.items())[:MOST_LABELS])
