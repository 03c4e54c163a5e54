"""Level files: what a chart platform reads, and what a restarted bridge reads back."""

import datetime
import json
import pathlib
import time

from data_pipeline.board import Board
from data_pipeline.board.restore import BoardRestore
from data_pipeline.board.series import trading_day
from data_pipeline.files import levels
from data_pipeline.files.levels import HEAD, LevelLines
from data_pipeline.payloads import times
from tests.helpers.support import RunningBridge, eventually

OPEN = datetime.datetime(2026, 11, 24, 9, 30, tzinfo=times.NEW_YORK).timestamp()
BASE = "levels/BRK%2FB/gex_zero/2026-11-24"


def test_a_payload_is_a_line_with_its_own_time_in_new_york_and_its_own_numbers():
    data = {"timestamp": OPEN + 1.5, "spot": 6800.25, "mpos_vol": "6850"}
    assert LevelLines().of("BRK/B", "gex_zero", "majors", data, 0.0) == {
        f"{BASE}.csv": b"1795530601.5,2026-11-24,09:30:01,6800.25,,,,6850.0,,,,\n"
    }


def test_a_maxchange_or_a_payload_without_a_number_has_no_line():
    lines = LevelLines()
    assert lines.of("A", "e", "maxchange", {"timestamp": OPEN, "spot": 1}, 0.0) == {}
    assert lines.of("A", "e", "snapshot", {"timestamp": OPEN, "strikes": [[1, 2]]}, 0.0) == {}


def test_strikes_are_written_once_a_minute():
    lines = LevelLines()
    made = [
        lines.of("A", "e", "snapshot", {"timestamp": OPEN + n, "spot": 1, "strikes": [[5, 6], [7, 8, 9]]}, 0.0)
        for n in (0, 59, 60)
    ]
    assert [len(found) for found in made] == [2, 1, 2]
    ((minute, strikes),) = levels.columns(made[0]["levels/A/e/2026-11-24.strikes.jsonl"])
    assert minute == OPEN // 60 and [(s.strike, s.volume, s.open_interest) for s in strikes] == [
        (5, 6, None),
        (7, 8, 9),
    ]


def test_torn_or_foreign_lines_are_passed_over():
    whole = b"1,2026-11-24,09:30:00,5.5,,,,,,,,\n"
    assert list(levels.rows(HEAD + whole + b"x\n" + whole[:-3])) == [(1.0, {"spot": 5.5})] * 1
    assert list(levels.columns(b'{"minute": 1}\n[]\n{"minute": 2, "strikes": [[1, 2, null]]}\n{"min')) != []


def test_a_board_gets_its_day_back_and_keeps_what_came_in_meanwhile(tmp_path: pathlib.Path):
    lines, files = LevelLines(), {}
    for second in range(300):
        data = {"timestamp": OPEN + second, "spot": float(second), "strikes": [[5, float(second)]]}
        for name, line in lines.of("BRK/B", "gex_zero", "snapshot", data, 0.0).items():
            files.setdefault(name, b"" if name.endswith("jsonl") else HEAD)
            files[name] += line
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    board = Board(lambda: OPEN + 400)
    board.add("BRK/B", "gex_zero", "snapshot", {"timestamp": OPEN + 299, "spot": -1.0})
    board.add("BRK/B", "gex_zero", "snapshot", {"timestamp": OPEN + 310, "spot": 310.0})
    restore = BoardRestore(board, tmp_path)
    restore.start()
    eventually(lambda: restore.series == 1)
    rows = board.ask("BRK/B", "gex_zero", lambda series: list(series.rows(0, 1e11)))
    assert [row["spot"] for _, row in rows] == [*map(float, range(299)), -1.0, 310.0]
    assert board.ask("BRK/B", "gex_zero", lambda series: len(series.grid())) == 5
    assert board.ask("BRK/B", "gex_zero", lambda series: series.latest()["spot"]) == 310.0


def test_after_kill_9_the_day_is_on_the_board_again_each_row_once(tmp_path):
    now = round(time.time())
    # All of one New York day, also just after its midnight.
    began = now - 60 if trading_day(now - 60) == trading_day(now) else now
    with RunningBridge(tmp_path / "data") as bridge:
        for second in range(60):
            data = {"timestamp": began + second, "spot": 6800.0 + second, "strikes": [[6800, 1.5, 2.5]]}
            assert bridge.post("/gex", {"ticker": "spx", "kind": "snapshot", "endpoint": "z", "data": data}) == 202
            if second == 40:
                bridge.kill()
                bridge.start()
        asked = b"GET /api/timeline?ticker=SPX&endpoint=z HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"

        def shown() -> list[float]:
            answer = json.loads(bridge.send(asked).split(b"\r\n\r\n", 1)[1])
            return [row["spot"] for row in answer.get("rows", [])]

        everything = [6800.0 + second for second in range(60)]
        eventually(lambda: shown() == everything)
        bridge.stop()
        (path,) = (tmp_path / "data" / "levels" / "SPX" / "z").glob("*.csv")
        assert path.read_bytes().startswith(HEAD)
        assert [values["spot"] for _, values in levels.rows(path.read_bytes())] == everything
        bridge.start()
        eventually(lambda: shown() == everything)
        assert "board has 1 series" in bridge.log
