import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.payloads.records import Link, Webhook
from data_pipeline.repository import upserts
from data_pipeline.repository.database import Database
from data_pipeline.repository.loader import UNLOADABLE
from data_pipeline.repository.rows import Rows
from tests.helpers import strategies
from tests.repository.test_rows import AT, added, fields, gex


@pytest.fixture(scope="module")
def con(tmp_path_factory):
    with Database(tmp_path_factory.mktemp("upserts") / "gex_history.duckdb").session() as open_:
        yield open_


@pytest.fixture
def tables(con):
    """The connection inside a transaction that nobody commits."""
    con.execute("BEGIN")
    yield con
    con.execute("ROLLBACK")


def table(con, name, columns="*", order="ALL"):
    return con.execute(f"SELECT {columns} FROM {name} ORDER BY {order}").fetchall()


def test_a_snapshot_row_is_replaced_by_the_next_one_of_its_key(tables):
    upserts.apply(tables, added(gex({"timestamp": 1, "spot": 1}), gex({"timestamp": 2, "spot": 2})))
    upserts.apply(tables, added(gex({"timestamp": 1, "spot": 3})))
    assert table(tables, "gex_bridge_snapshots", "timestamp, spot") == [(1, 3.0), (2, 2.0)]


def test_strikes_of_a_key_are_replaced_together_and_stay_where_none_come(tables):
    upserts.apply(
        tables,
        added(gex({"timestamp": 1, "strikes": [[5300, 1], [5305, 2]]}), gex({"timestamp": 2, "strikes": [[1, 1]]})),
    )
    upserts.apply(tables, added(gex({"timestamp": 1, "strikes": [[5310, 3], [5300, 4]]})))
    upserts.apply(tables, added(gex({"timestamp": 1, "strikes": []})))
    assert table(tables, "gex_bridge_strikes", "timestamp, strike, gamma_now") == [
        (1, 5300.0, 4.0),
        (1, 5310.0, 3.0),
        (2, 1.0, 1.0),
    ]


def test_strikes_of_other_tickers_and_endpoints_stay(tables):
    for ticker, endpoint in (("SPX", "a"), ("SPX", "b"), ("NDX", "a")):
        upserts.apply(tables, added(gex({"timestamp": 1, "strikes": [[1, 1]]}, ticker=ticker, endpoint=endpoint)))
    upserts.apply(tables, added(gex({"timestamp": 1, "strikes": [[2, 2]]}, ticker="SPX", endpoint="a")))
    assert table(tables, "gex_bridge_strikes", "ticker, endpoint, strike") == [
        ("NDX", "a", 1.0),
        ("SPX", "a", 2.0),
        ("SPX", "b", 1.0),
    ]


def test_ids_count_up_from_one_and_are_never_used_again(tables):
    def post(count):
        upserts.apply(tables, added(*[Webhook(AT, "::1", "", b'{"topic": "option_trades_super_algo"}')] * count))

    post(3)
    tables.execute("DELETE FROM universal_webhooks WHERE id >= 2")
    post(2)
    tables.execute("DELETE FROM universal_webhooks")
    post(1)
    assert table(tables, "universal_webhooks", "id") == [(6,)]
    assert table(tables, "option_trades_events", "id") == [(n,) for n in range(1, 7)]


def test_ids_go_on_behind_a_row_put_there_by_hand(tables):
    tables.execute("INSERT INTO universal_webhooks (id, payload_json) VALUES (100, '{}')")
    upserts.apply(tables, added(Webhook(AT, "::1", "", b"{}")))
    assert table(tables, "universal_webhooks", "id") == [(100,), (101,)]


def test_links_keep_their_ids_and_rows_put_there_by_hand_make_room(tables):
    tables.execute("INSERT INTO gex_history_queue (id, url, ticker, endpoint) VALUES (2, 'by hand', 't', 'e')")
    upserts.apply(tables, added(*(Link(AT, n, f"url {n}", "SPX", "gex") for n in (1, 2, 3))))
    assert table(tables, "gex_history_queue", "id, url", "id") == [
        (1, "url 1"),
        (2, "url 2"),
        (3, "url 3"),
        (4, "by hand"),
    ]


def test_numbers_keep_every_digit_and_nan_is_null(tables):
    upserts.apply(
        tables,
        added(gex({"timestamp": 2**62 + 1, "spot": 5300.123456789, "zero_gamma": math.nan, "net_gex_vol": 2**53})),
    )
    assert table(tables, "gex_bridge_snapshots", "timestamp, spot, zero_gamma, net_gex_vol") == [
        (2**62 + 1, 5300.123456789, None, 2.0**53)
    ]


@pytest.mark.parametrize(
    "rows",
    [
        Rows(links=[(2**70, "u", "t", "e", "pending", 0, None, AT, AT)]),
        Rows(links=[(1, None, "t", "e", "pending", 0, None, AT, AT)]),
        Rows(webhooks=[(AT, "{}", "\ud800", "")]),
        Rows(webhooks=[(AT, 5, "::1", "")]),
        Rows(strikes={("SPX", 1, "e"): ([1.0, 1.0], *[[None, None]] * 8)}),
    ],
)
def test_what_does_not_fit_raises_what_the_loader_takes_for_the_records_fault(con, rows):
    con.execute("BEGIN")
    with pytest.raises(UNLOADABLE):
        upserts.apply(con, rows)
    con.execute("ROLLBACK")


@settings(max_examples=25)
@given(st.lists(st.tuples(fields, strategies.texts, st.none() | strategies.texts), min_size=1, max_size=8))
def test_whatever_clients_send_is_loaded(con, sent):
    rows = added(
        *(gex(data, ticker=ticker, endpoint=endpoint, webhook=("::1", ticker)) for data, ticker, endpoint in sent)
    )
    con.execute("BEGIN")
    upserts.apply(con, rows)
    assert len(table(con, "gex_bridge_snapshots")) == len(rows.snapshots)
    assert len(table(con, "gex_bridge_strikes")) == sum(len(columns[0]) for columns in rows.strikes.values())
    stored = [text for (text,) in table(con, "universal_webhooks", "payload_json", "id")]
    assert stored == [row[1] for row in rows.webhooks]
    con.execute("ROLLBACK")
