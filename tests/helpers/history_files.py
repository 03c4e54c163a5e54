"""Makes history files for tests and benchmarks: GEXBot's classic chains, one a second."""

import json
import random

DAY_START = 1735828200  # 2025-01-02 14:30 UTC


def record(timestamp, strikes: int = 3, priors: int = 2, seed: int = 1, **more) -> dict:
    """One chain; `more` replaces or adds keys."""
    rng = random.Random(f"{timestamp}/{seed}")

    def number(scale: float) -> float:
        return round(rng.gauss(0, scale), 3)

    spot = round(5900 + number(3), 2)
    return {
        "timestamp": timestamp,
        "ticker": "SPX",
        "min_dte": 0,
        "sec_min_dte": 1,
        "spot": spot,
        "zero_gamma": spot - 3,
        "major_pos_vol": 5900.0,
        "major_pos_oi": 5950.0,
        "major_neg_vol": 5850.0,
        "major_neg_oi": 5800.0,
        "strikes": [
            [5700.0 + 5 * i, number(5000), number(900), [number(5000) for _ in range(5)]] for i in range(strikes)
        ],
        "sum_gex_vol": number(9000),
        "sum_gex_oi": number(9000),
        "delta_risk_reversal": number(0.1),
        "max_priors": [[5700.0 + 5 * rng.randrange(65), number(500)] for _ in range(priors)],
    } | more


def day(count: int, start: int = DAY_START, **of_each) -> list[dict]:
    """`count` chains, one a second from `start` on."""
    return [record(start + i, **of_each) for i in range(count)]


def write_day(path, count: int, start: int = DAY_START, strikes: int = 65, priors: int = 5) -> None:
    """A JSON array of `count` chains, written as it is made: 23,400 with 65 strikes are 122 MB."""
    with open(path, "w") as file:
        for i in range(count):
            file.write(("," if i else "[") + json.dumps(record(start + i, strikes, priors), separators=(",", ":")))
        file.write("]")
