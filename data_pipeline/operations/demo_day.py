"""A made-up trading day that looks like one: what `gex-bridge demo` sends.

Nothing here is market data.  Spot is a random walk; dealers' gamma is
positive above a flip point and negative below it, largest near spot and at
round strikes, so that zero gamma, majors and net gamma follow from the
strikes as they do in a real chain.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from data_pipeline.payloads.store import WINDOWS

Payload = dict[str, object]


@dataclass(frozen=True)
class Market:
    """A ticker: where its spot begins, the distance of its strikes, and its volatility over a day (share of spot)."""

    ticker: str
    spot: float
    distance: float
    volatility: float


MARKETS = (
    Market("SPX", 6_812.0, 5.0, 0.009),
    Market("NDX", 24_480.0, 25.0, 0.013),
    Market("SPY", 679.4, 1.0, 0.009),
    Market("QQQ", 594.7, 1.0, 0.013),
)
DAY = 23_400  # s of a regular session
STRIKES_EACH_SIDE = 32
SPREAD = 16  # strikes over which gamma falls off
MINUTES = (1, 5, 10, 15, 30)  # of the priors
FLOW_EVERY = 7  # payloads between two option trades, on average


class Day:
    """One ticker's day; `step` goes on in time and returns what a feed would send then.  seed: the same day again."""

    def __init__(self, market: Market, seed: int = 1):
        self.market = market
        self._chance = random.Random(f"{market.ticker} {seed}")
        self.spot = market.spot
        self._flip = market.spot * 0.999
        self._size: dict[float, float] = {}  # strike -> its share of the open interest
        self._ago: list[tuple[float, dict[float, float]]] = []  # (time, gamma by strike), the last half hour

    def step(self, moment: float, seconds: float) -> Iterator[tuple[str, Payload]]:
        """(path, body) of each post at `moment` (UTC seconds), `seconds` after the last one."""
        drift = self.market.volatility * math.sqrt(seconds / DAY)
        self.spot *= 1 + self._chance.gauss(0, drift)
        self._flip += (self.spot - self._flip) * min(1.0, seconds / 5400) + self._chance.gauss(0, drift) * self.spot / 3
        gammas = self._gammas()
        snapshot = self._snapshot(moment, gammas)
        yield "/gex", self._envelope("snapshot", snapshot)
        yield "/gex", self._envelope("maxchange", {"timestamp": moment, **self._max_change(moment, gammas)})
        self._ago = [(at, found) for at, found in self._ago if at > moment - 1900] + [(moment, gammas)]
        if self._chance.random() < 1 / FLOW_EVERY:
            yield "/uw", self._trade(moment)

    def _envelope(self, kind: str, data: Payload) -> Payload:
        return {"ticker": self.market.ticker, "kind": kind, "endpoint": "gex_zero", "data": data}

    def _gammas(self) -> dict[float, float]:
        distance = self.market.distance
        middle = round(self.spot / distance)
        found = {}
        for number in range(middle - STRIKES_EACH_SIDE, middle + STRIKES_EACH_SIDE + 1):
            strike = number * distance
            if strike not in self._size:
                self._size[strike] = (2.2 if number % 5 == 0 else 1.0) * self._chance.uniform(0.5, 1.4)
            near = math.exp(-(((strike - self.spot) / (SPREAD * distance)) ** 2))
            side = math.tanh((strike - self._flip) / (4 * distance))
            found[strike] = 9e4 * self._size[strike] * near * side
        return found

    def _before(self, moment: float, minutes: int) -> dict[float, float]:
        older = [found for at, found in self._ago if at <= moment - 60 * minutes]
        return older[-1] if older else {}

    def _snapshot(self, moment: float, gammas: dict[float, float]) -> Payload:
        before = [self._before(moment, minutes) for minutes in MINUTES]
        strikes = [
            [strike, round(gamma, 1), round(0.7 * gamma, 1), [round(found.get(strike, gamma), 1) for found in before]]
            for strike, gamma in gammas.items()
        ]
        above, below = max(gammas, key=gammas.__getitem__), min(gammas, key=gammas.__getitem__)
        net = sum(gammas.values())
        return {
            "timestamp": moment,
            "spot": round(self.spot, 2),
            "zero_gamma": round(self._flip, 2),
            "sum_gex_vol": round(net, 1),
            "sum_gex_oi": round(0.7 * net, 1),
            "major_pos_vol": above,
            "major_neg_vol": below,
            "major_pos_oi": above,
            "major_neg_oi": below,
            "delta_risk_reversal": round(-0.02 - 0.5 * (self.spot / self.market.spot - 1), 4),
            "strikes": strikes,
            "max_priors": list(self._max_change(moment, gammas).values()),
        }

    def _max_change(self, moment: float, gammas: dict[float, float]) -> dict[str, list[float]]:
        found = {}
        for window, minutes in zip(WINDOWS, (0, *MINUTES)):
            before = self._before(moment, minutes)
            strike = max(gammas, key=lambda one: abs(gammas[one] - before.get(one, gammas[one])))
            found[window] = [strike, round(gammas[strike] - before.get(strike, gammas[strike]), 1)]
        return found

    def _trade(self, moment: float) -> Payload:
        distance = self.market.distance
        strike = round(self.spot / distance + self._chance.randint(-6, 6)) * distance
        size, price = self._chance.choice((20, 50, 100, 250, 900)), round(self._chance.uniform(0.4, 18.0), 2)
        kind = self._chance.choice(("call", "put"))
        return {
            "topic": "flow_alerts",
            "payload": {
                "ticker": self.market.ticker,
                "type": kind,
                "strike": str(strike),
                "expiry": "2026-12-18",
                "executed_at": int(1000 * moment),
                "size": size,
                "price": str(price),
                "premium": str(round(100 * size * price)),
                "underlying_price": str(round(self.spot, 2)),
                "tags": [self._chance.choice(("ask_side", "bid_side"))],
                "has_sweep": self._chance.random() < 0.3,
            },
        }
