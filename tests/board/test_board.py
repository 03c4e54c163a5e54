"""The board holds what it is given, within bounds, and never fails the request that feeds it."""

import tracemalloc

from data_pipeline.board import board as board_module
from data_pipeline.board.board import Board

NOW = 1_795_000_000.0


def test_over_the_bound_the_series_that_was_silent_the_longest_goes(monkeypatch):
    monkeypatch.setattr(board_module, "MOST_SERIES", 2)
    board = Board(lambda: NOW)
    for ticker in ("A", "B", "A", "C"):
        board.add(ticker, "gex_zero", "snapshot", {"timestamp": NOW, "spot": 1})
    assert board.series() == [("A", "gex_zero"), ("C", "gex_zero")]
    assert board.stats() == {"series": 2, "evicted": 1, "failed": 0, "flow": 0}


def test_what_it_cannot_take_is_counted_said_once_and_raises_nothing(caplog):
    board = Board(lambda: NOW)
    for _ in range(3):
        board.add("A", "e", "snapshot", None)
    assert board.stats()["failed"] == 3
    assert len(caplog.records) == 1
    board.add("A", "e", "snapshot", {"timestamp": NOW, "spot": 2.0})
    assert board.ask("A", "e", lambda series: series.latest()["spot"]) == 2.0


def test_only_a_series_own_payloads_change_its_number():
    board = Board(lambda: NOW)
    board.add("A", "e", "snapshot", {"timestamp": NOW})
    before = board.changes("A", "e"), board.changes()
    board.add("B", "e", "snapshot", {"timestamp": NOW})
    assert (board.changes("A", "e"), board.changes()) == (before[0], before[1] + 1)
    assert board.ask("C", "e", lambda series: 1) is None and board.changes("C", "e") == 0


def test_a_whole_day_at_a_payload_a_second_stays_within_its_memory():
    # 65 strikes: the session's 23,400 rows of ten numbers, and 390 columns of the grid.
    board = Board(lambda: NOW)
    strikes = [[6500.0 + n, 1.5 * n, -0.5 * n, [1.0] * 5] for n in range(65)]
    tracemalloc.start()
    try:
        for second in range(23_400):
            board.add(
                "SPX", "gex_zero", "snapshot", {"timestamp": NOW + second, "spot": 1.0 * second, "strikes": strikes}
            )
        board.ask("SPX", "gex_zero", lambda series: series.grid())
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held < 3 << 20
