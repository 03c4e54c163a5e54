import re

from prometheus_client.parser import text_string_to_metric_families

from data_pipeline.http_server import metrics

STATUS = {
    "version": "2.0.0",
    "uptime_seconds": 12.5,
    "requests": {"/gex": {"202": 5, "400": 1}, "/uw": {"200": 2}, "other": {"404": 3}},
    "journal": {"position": 8, "bytes": 4096, "segments": 1, "failed": 0, "healthy": True},
    "loader": {
        "position": 7,
        "lag_records": 1,
        "lag_seconds": 0.25,
        "sessions": 3,
        "busy_retries": 0,
        "set_aside": 0,
        "last_session_seconds": 0.05,
        "records": 7,
        "left_out": {"without_time": 2},
    },
    "files": {"position": 8, "views_written": 4, "lines_appended": 10, "lag_records": 0, "lag_seconds": 0.0},
    "depth": {"enqueued": 5, "written": 4, "dropped": 0, "retried": 0, "dead_lettered": 0, "queue": 1, "position": 6},
    "discord": {"queued": 3, "sent": 2, "failed": 1, "refused": 1},
    "poller": {"rounds": 3, "failing": 1, "last_error": "text"},
    "refresher": {"done": 3, "failing": 0},
    "downloads": {"started": 1, "waiting": 4, "running": 2},
    "dashboard": {"accepted": 0, "down": True},
    "importer": {"completed": 1, "failed": 0, "current": 5},
    "history": {"pending": 2, "done": 1},
    "ticker_count": 2,
    "tickers": {
        "SPX": {"kind": "snapshot", "endpoint": "gex_zero", "received_at": None, "age_seconds": 3.5},
        'x"\n} 1': {"kind": "majors", "endpoint": None, "received_at": None, "age_seconds": 1.5},
    },
}


def samples(status: dict) -> dict:
    text = metrics.render(status).decode()
    found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(s.name, tuple(s.labels.values())): s.value for s in found}


def test_each_number_of_the_status_is_a_metric():
    found = samples(STATUS)
    assert found["gexbridge_requests_total", ("/gex", "202")] == 5
    assert found["gexbridge_requests_total", ("other", "404")] == 3
    assert found["gexbridge_loader_lag_seconds", ()] == 0.25
    assert found["gexbridge_loader_sessions_total", ()] == 3
    assert found["gexbridge_journal_healthy", ()] == 1
    assert found["gexbridge_depth_events_total", ("written",)] == 4
    assert found["gexbridge_depth_queue_events", ()] == 1
    assert found["gexbridge_discord_events_total", ("sent",)] == 2
    assert found["gexbridge_history_queue_links", ("pending",)] == 2
    assert found["gexbridge_build_info", ("2.0.0",)] == 1
    assert found["gexbridge_tickers", ()] == 2
    assert found["gexbridge_last_payload_age_seconds", ()] == 1.5
    parts = [STATUS["loader"]["left_out"]] + [
        STATUS[name]
        for name in STATUS
        if name not in ("version", "uptime_seconds", "requests", "tickers", "ticker_count")
    ]
    numbers = sum(isinstance(v, (int, float)) for part in [*parts, *STATUS["requests"].values()] for v in part.values())
    assert len(found) == numbers + len(["version", "uptime", "tickers", "last payload"])


def test_what_goes_up_and_down_is_no_counter():
    text = metrics.render(STATUS).decode()
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)", text, re.M))
    found = samples(STATUS)
    for name, value in {
        "depth_position": 6,
        "depth_queue_events": 1,
        "discord_queued_messages": 3,
        "discord_refused": 1,
        "poller_failing_jobs": 1,
        "refresher_failing_jobs": 0,
        "downloads_waiting": 4,
        "downloads_running": 2,
        "dashboard_down": 1,
        "importer_current_link": 5,
        "files_lag_records": 0,
    }.items():
        assert (kinds[f"gexbridge_{name}"], found[f"gexbridge_{name}", ()]) == ("gauge", value)
    words = {label for (_, labels) in found for label in labels}
    assert not words & {"position", "queue", "queued", "refused", "failing", "waiting", "running", "down", "current"}
    assert found["gexbridge_loader_left_out_records_total", ("without_time",)] == 2
    assert kinds["gexbridge_loader_left_out_records_total"] == "counter"


def test_names_have_the_prefix_help_and_base_units():
    text = metrics.render(STATUS).decode()
    names = re.findall(r"^# TYPE (\S+) (\S+)", text, re.M)
    assert names and all(name.startswith("gexbridge_") for name, _ in names)
    assert all(name.endswith("_total") == (kind == "counter") for name, kind in names)
    assert len(re.findall(r"^# HELP \S+ \S+", text, re.M)) == len(names)
    assert not re.search(r"_(ms|milliseconds|minutes|kb|mb)\b", text)


def test_no_ticker_gets_a_label():
    many = {f"T{n}": {"age_seconds": n} for n in range(1_000)}
    text = metrics.render(STATUS | {"tickers": many}).decode()
    assert len(text.splitlines()) == len(metrics.render(STATUS).decode().splitlines())
    assert "T77" not in text


def test_counts_by_unforeseen_words_are_bounded():
    many = {"discord": {f"word{n}": n for n in range(1000)}, "requests": {f"/{n}": {"404": 1} for n in range(1000)}}
    assert len(samples(many)) == 2 * metrics.MOST_LABELS


def test_what_is_absent_or_of_another_shape_is_left_out():
    assert metrics.render({}) == b""
    odd = {"journal": None, "loader": 3, "requests": {"/gex": None}, "tickers": ["SPX"], "depth": "x"}
    assert samples({"uptime_seconds": 1} | odd) == {("gexbridge_uptime_seconds", ()): 1.0}


def test_two_answers_do_not_add_up():
    assert samples(STATUS) == samples(STATUS)
    assert metrics.content_type().startswith("text/plain")
