"""`gex-bridge demo`: a real bridge on a folder of its own, whose day can be looked at and kept."""

import http.client
import json
import re
import signal
import subprocess
import sys

from data_pipeline import cli
from data_pipeline.operations.demo_day import MARKETS, Day
from tests.helpers.support import ROOT, eventually, read


def test_the_first_hours_are_there_at_once_the_rest_arrives_and_the_folder_can_be_kept(tmp_path):
    command = [sys.executable, "-m", "data_pipeline", "demo", "--keep", str(tmp_path / "kept"), "--speed", "20"]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    port = int(re.search(r"http://127\.0\.0\.1:(\d+)/", child.stdout.readline())[1])

    def state() -> dict[str, dict]:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        client.request("GET", "/api/state")
        return {row["ticker"]: row for row in json.loads(client.getresponse().read())}

    first = state()
    assert set(first) == {market.ticker for market in MARKETS}
    eventually(lambda: state()["SPX"]["updated"] > first["SPX"]["updated"])
    child.send_signal(signal.SIGTERM)
    assert child.wait(30) == 0
    child.stdout.close()
    ((rows,),) = read(tmp_path / "kept/raw/gex/gex_history.duckdb", "SELECT count(*) FROM gex_bridge_snapshots")
    assert rows > 1000


def test_a_folder_with_data_in_it_is_never_touched(tmp_path, capsys):
    (tmp_path / "mine").write_text("data")
    assert cli.main(["demo", "--keep", str(tmp_path)]) == 1
    assert "is not an empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_day_of_the_same_seed_is_the_same_day_and_its_levels_follow_from_its_strikes():
    days = [list(Day(MARKETS[0], seed=5).step(1_795_000_000.0, 15.0)) for _ in range(2)]
    assert days[0] == days[1]
    data = days[0][0][1]["data"]
    gammas = {strike: gamma for strike, gamma, *_ in data["strikes"]}
    assert data["major_pos_vol"] == max(gammas, key=gammas.get)
    assert abs(data["sum_gex_vol"] - sum(gammas.values())) < 10
