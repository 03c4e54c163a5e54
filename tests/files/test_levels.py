"""Level files: what a chart platform reads, and what a restarted bridge reads back."""

import datetime
import pathlib

from data_pipeline.board import Board
from data_pipeline.board.restore import BoardRestore
from data_pipeline.files import levels
from data_pipeline.files.levels import HEAD, LevelLines
from tests.helpers.support import eventually

OPEN = datetime.datetime(2026, 11, 24, 9, 30, tzinfo=levels.NEW_YORK).timestamp()
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
