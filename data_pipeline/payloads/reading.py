"""What one gamma-exposure payload says by itself: its own time, its own numbers, its own strikes.

The combined view of `store` lays one kind over another, as the original did.
What is drawn, exported or alerted on never does: a number belongs to the
payload that brought it, and to that payload's time.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from data_pipeline.payloads import times
from data_pipeline.payloads.values import number

# Column -> the names that feeds give it, the best one first.
NAMES: Mapping[str, tuple[str, ...]] = {
    "spot": ("spot", "spot_price", "price"),
    "zero_gamma": ("zero_gamma",),
    "net_gex_vol": ("sum_gex_vol", "net_gex_vol", "net_gex"),
    "net_gex_oi": ("sum_gex_oi", "net_gex_oi"),
    "major_pos_vol": ("major_pos_vol", "mpos_vol"),
    "major_neg_vol": ("major_neg_vol", "mneg_vol"),
    "major_pos_oi": ("major_pos_oi", "mpos_oi"),
    "major_neg_oi": ("major_neg_oi", "mneg_oi"),
    "delta_risk_reversal": ("delta_risk_reversal",),
}
PRIORS = 5  # gamma by volume 1, 5, 10, 15 and 30 minutes ago


@dataclass(frozen=True)
class Strike:
    """One strike: gamma exposure by volume and by open interest, and by volume 1 to 30 minutes ago (None: unknown)."""

    strike: float
    volume: float
    open_interest: float | None
    priors: tuple[float | None, ...]


@dataclass(frozen=True)
class Reading:
    """time: UTC seconds.  values: by column of NAMES, only those the payload has.  strikes: by strike, ascending."""

    time: float
    values: Mapping[str, float]
    strikes: tuple[Strike, ...] = field(default=())


def read(data: Mapping[str, object], received: float) -> Reading:
    """The reading of a payload's data object, strikes included; see `time_and_values`."""
    moment, values = time_and_values(data, received)
    return Reading(moment, values, strikes(data.get("strikes")))


def time_and_values(data: Mapping[str, object], received: float) -> tuple[float, dict[str, float]]:
    """A payload's time in UTC seconds, and the columns of NAMES that it has.

    received: stands in where the payload names no time that can be read.
    Never raises for what a JSON parser can return.
    """
    moment = times.seconds_of(data.get("timestamp"))
    values = {}
    for column, names in NAMES.items():
        found = next((value for name in names if (value := number(data.get(name))) is not None), None)
        if found is not None:
            values[column] = found
    return received if moment is None else moment, values


def strikes(entries: object) -> tuple[Strike, ...]:
    """Each list of at least two is one; of the same strike twice the last counts; what is no number is left out."""
    if not isinstance(entries, list):
        return ()
    found = {}
    for entry in entries:
        if not isinstance(entry, list) or len(entry) < 2:
            continue
        strike, volume = number(entry[0]), number(entry[1])
        if strike is None or volume is None:
            continue
        history = entry[3] if len(entry) > 3 and isinstance(entry[3], list) else []
        priors = tuple(number(value) for value in [*history, *[None] * PRIORS][:PRIORS])
        found[strike] = Strike(strike, volume, number(entry[2]) if len(entry) > 2 else None, priors)
    return tuple(found[strike] for strike in sorted(found))
