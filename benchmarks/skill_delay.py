"""How long the gate's skill takes to find that stacking is worse, and how often it is wrong.

    python -m benchmarks.skill_delay [--histories 400] [--days 360] [--level 2000]

Each history has made bars of 1h: returns with fat tails and volatility that comes in waves and by
the hour, and a part that can be predicted and lasts for hours. Two forecasters see that part, each
with errors of its own and errors that both share; all of them last for hours. Their labels look h
bars ahead and overlap. With equal errors they are equally good. For a loss of .01, .02 or .05 in
log score, stacking's own errors are made larger. It is looked at at every bar.
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from macd.host.judge import skill

Doubles = NDArray[np.float64]

HORIZONS = (5, 12)
LOSSES = (0.01, 0.02, 0.05)
DAY = 24  # bars
LEVEL_DAYS = 90
_KNOWN, _SHARED = 0.9, 0.85  # memory from bar to bar: of what can be predicted, of errors
_STRENGTH, _GAIN = 0.08, 0.12
_BATCH = 200
_MARGIN = 1e-12


def main() -> None:
    """Print the level, then a line for each horizon and loss."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--histories", type=int, default=400, help="for each delay")
    parser.add_argument("--days", type=int, default=360, help="how long to wait for a delay")
    parser.add_argument("--level", type=int, default=2000, help="histories of equal skill")
    asked = parser.parse_args()
    bars = LEVEL_DAYS * DAY
    print(f"equal skill, {asked.level} histories, looked at at every bar for {LEVEL_DAYS} days")
    for h in HORIZONS:
        for waves in (0.0, 0.5):
            worse, better = (
                np.concatenate([found[k] for found in batches(asked.level, bars, h, waves=waves)])
                for k in (0, 1)
            )
            what = "skill comes and goes over weeks" if waves else "skill is steady"
            shares = [100 * np.mean(np.isfinite(first)) for first in (worse, better)]
            print(f"  {h:>2} bars, {what:<32} FAIL {shares[0]:.1f} %, better {shares[1]:.1f} %")
    print(f"\nworse by so much in log score, {asked.histories} histories of {asked.days} days")
    for h in HORIZONS:
        for loss in LOSSES:
            _print_delay(asked.histories, asked.days * DAY, h, loss)


def _print_delay(histories: int, bars: int, h: int, loss: float) -> None:
    error = error_for(loss, h)
    found = np.concatenate([first for first, _ in batches(histories, bars, h, error=error)])
    median = np.median(found)
    shown = (
        f"{median / DAY:.0f} days" if np.isfinite(median) else f"more than {bars / DAY:.0f} days"
    )
    within = 100 * np.mean(found < LEVEL_DAYS * DAY)
    print(f"  {h:>2} bars, {loss:.2f}: median {shown}; within {LEVEL_DAYS} days {within:.0f} %")


def batches(
    histories: int, bars: int, h: int, *, error: float = 1.0, waves: float = 0.0
) -> list[tuple[Doubles, Doubles]]:
    """First bars at which it is proved that stacking is worse, and that it is better."""
    found = []
    for at in range(0, histories, _BATCH):
        rng = np.random.default_rng((h, at, int(1000 * error)))
        many = min(_BATCH, histories - at)
        stacking, mean, closes = made(rng, many, bars, h, error=error, waves=waves)
        difference, risk = differences(stacking, mean, closes, h)
        found.append(tuple(first(wealths(difference, risk, h, sign)) for sign in (-1, 1)))
    return [(worse, better) for worse, better in found]


def error_for(loss: float, h: int) -> float:
    """How large stacking's own errors must be for so much less log score, by bisection."""
    low, high = 1.0, 20.0
    for _ in range(12):
        middle = (low + high) / 2
        stacking, mean, closes = made(np.random.default_rng(5), 40, 4000, h, error=middle)
        lost = -float(differences(stacking, mean, closes, h)[0].mean())
        low, high = (middle, high) if lost < loss else (low, middle)
    return (low + high) / 2


def made(
    rng: np.random.Generator,
    histories: int,
    bars: int,
    h: int,
    *,
    error: float = 1.0,
    waves: float = 0.0,
) -> tuple[Doubles, Doubles, Doubles]:
    """Probabilities of stacking and of the mean, by history and bar, and h closes more than bars.

    error: stacking's own errors, in those of the mean. waves: how much the errors of each come and
    go, over weeks.
    """
    n = bars + h
    known = _wave(rng, (histories, n), _KNOWN)
    hour = np.sin(2 * np.pi * np.arange(n) / DAY)
    level = 0.5 * _half(rng, (histories, n), 48) + 0.35 * _half(rng, (histories, n), 720)
    chance = rng.standard_t(4, (histories, n)) / np.sqrt(2)
    returns = 0.006 * np.exp(level + 0.3 * hour - 0.3) * (_STRENGTH * known + chance)
    closes = np.exp(np.cumsum(returns, axis=1))
    shared = _wave(rng, (histories, bars), _SHARED)

    def forecast(own: float) -> Doubles:
        size = own * np.exp(waves * _half(rng, (histories, bars), 24 * 7)) if waves else own
        errors = 0.7 * shared + size * _wave(rng, (histories, bars), _SHARED)
        return np.asarray(1 / (1 + np.exp(-_GAIN * (known[:, 1 : bars + 1] + errors))))

    return forecast(error), forecast(1.0), closes


def differences(
    stacking: Doubles, mean: Doubles, closes: Doubles, h: int
) -> tuple[Doubles, Doubles]:
    """Of log scores (histories, bars), and the largest that each could have been: as skill.py."""
    ours, theirs = (
        np.log(p / (1 - p))
        for p in (np.clip(q, skill.CLIP, 1 - skill.CLIP) for q in (stacking, mean))
    )
    ours = theirs + np.clip(ours - theirs, -skill.WIDEST, skill.WIDEST)
    up = np.logaddexp(0, -theirs) - np.logaddexp(0, -ours)
    down = np.logaddexp(0, theirs) - np.logaddexp(0, ours)
    bars = stacking.shape[1]
    moved = closes[:, h : bars + h] - closes[:, :bars]
    return np.where(moved > 0, up, np.where(moved < 0, down, 0.0)), np.maximum(abs(up), abs(down))


def wealths(difference: Doubles, risk: Doubles, h: int, sign: int) -> Doubles:
    """What `skill.wealth` is at every bar (bars, histories), without gaps in the bars."""
    histories, bars = difference.shape
    part = np.array(skill.FRACTIONS)[:, None]
    money = np.ones((len(part), histories))
    open_risk = np.zeros_like(money)
    stakes = np.zeros((bars, *money.shape))
    seen = np.cumsum(risk, axis=1)
    left = np.empty((bars, histories))
    for at in range(bars):
        if at >= h:
            money += stakes[at - h] * sign * difference[:, at - h]
            open_risk -= stakes[at - h] * risk[:, at - h]
        if at >= skill.WARM_UP:
            usual = h * seen[:, at - 1] / at
            most = (money - open_risk) / np.maximum(risk[:, at], _MARGIN)
            stakes[at] = np.maximum(np.minimum(part * money / usual, most), 0)
            open_risk += stakes[at] * risk[:, at]
        left[at] = (money - open_risk).mean(axis=0)
    return left


def first(left: Doubles, alpha: float = 0.05) -> Doubles:
    """The first bar at which something is proved, by history; inf where nothing ever is."""
    proved = left >= 1 / alpha
    return np.where(proved.any(axis=0), proved.argmax(axis=0), np.inf)


def _half(rng: np.random.Generator, shape: tuple[int, int], bars: float) -> Doubles:
    return _wave(rng, shape, 0.5 ** (1 / bars))


def _wave(rng: np.random.Generator, shape: tuple[int, int], memory: float) -> Doubles:
    """Stationary first-order autoregressions of variance 1."""
    noise = rng.standard_normal((shape[0], shape[1] + 300))
    start = rng.standard_normal((shape[0], 1)) * memory
    scale = np.sqrt(1 - memory**2)
    return np.asarray(lfilter([scale], [1, -memory], noise, axis=1, zi=start)[0][:, 300:])


if __name__ == "__main__":
    main()
