"""What a Discord that hangs costs a `/uw` request: `python -m tests.benchmarks.discord [--requests 2000] [--rounds 3]`.

Workload: POST /uw, an option trade of `option_trades_super_algo`, a connection
a request, 8 clients.  A bridge without Discord, one whose Discord accepts and
never answers, and one whose Discord answers 500 take turns, each beginning a
round once.
"""

import argparse
import json
import pathlib
import tempfile

from tests.benchmarks.ingest import Run, percentile
from tests.helpers.support import RunningBridge
from tests.helpers.web import Answer, Service

TRADE = {
    "topic": "option_trades_super_algo",
    "alert": {"symbol": "SPX", "action": "buy", "quantity": 4, "price": 12.35, "strike": 5400, "option_type": "C"},
    "executions": [{"broker": "tt", "quantity": 4, "price": 12.4, "dry_run": True}],
}


class Trades(Run):
    """The same client, with trades."""

    path, good = b"/uw", b"HTTP/1.0 200"
    made = [json.dumps(TRADE).encode()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    hanging, failing = Service(lambda _: Answer(manner="hang")), Service(lambda _: Answer(status=500))
    with tempfile.TemporaryDirectory(prefix="gex-bench-") as name, hanging, failing:
        kinds = {"off": {}, "hanging": discord(hanging.url), "answering 500": discord(failing.url)}
        bridges = {kind: RunningBridge(pathlib.Path(name) / kind, **extra).start() for kind, extra in kinds.items()}
        runs: dict[str, list[Run]] = {kind: [] for kind in kinds}
        for number in range(args.rounds):
            order = list(kinds)[number % len(kinds) :] + list(kinds)[: number % len(kinds)]
            for kind in order:
                runs[kind].append(Trades(bridges[kind].port, 8, args.requests))
        for bridge in bridges.values():
            bridge.process.kill()
    print(f"{'Discord':<16}{'requests/s':>12}{'P50 ms':>9}{'P99 ms':>9}{'max ms':>9}{'failed':>8}")
    for kind, done in runs.items():
        latencies = [latency for run in done for latency in run.latencies]
        rate = len(latencies) / sum(run.seconds for run in done)
        print(
            f"{kind:<16}{rate:>12.0f}{percentile(latencies, 0.5):>9.1f}{percentile(latencies, 0.99):>9.1f}"
            f"{1e3 * max(latencies):>9.1f}{sum(run.failed for run in done):>8}"
        )


def discord(url: str) -> dict[str, str]:
    return {"DISCORD_BOT_TOKEN": "TOKEN", "DISCORD_CHANNEL_ID": "111", "DISCORD_API_URL": url}


if __name__ == "__main__":
    main()
