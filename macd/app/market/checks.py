"""`data.verify`: every defect of bars by name, row and time. Reports, never repairs.

Pure: bars and the time now go in, findings come out. An `error` would make training learn something
that is not the market; a `warn` is odd but happens in real markets, and a person should look.

Shapes: `stamps` are epoch milliseconds UTC, int64 of shape (N,); `values` are open, high, low,
close and volume, float64 of shape (N, 5).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta

import numpy as np
import numpy.typing as npt
import polars as pl

from macd.app.market import calendars
from macd.app.market.bars import COLUMNS, grid_origin, step_ms
from macd.app.market.findings import Finding, Level, Limits, Mask, Millis, moment, runs
from macd.train_options import EXCHANGES, Market

__all__ = ["Finding", "Limits", "check_all", "check_bars", "check_together"]

_PRICES = COLUMNS[1:5]
_SCALE_BARS = 168  # a week of hourly bars around a bar shows how volatile the market was
_NEAR_TEN = 0.3  # log distance from a power of ten, since the market moves in that bar as well
_CRASH_VOLUME = 5.0  # times the usual: in a wick that nobody made up, somebody traded
_CRASH_ELSEWHERE = 0.08  # log distance from its open that another asset went in the same bar
_RESTING: tuple[tuple[Market, ...], ...] = (("fx", "stocks"), EXCHANGES)
_REST = "a market that rests then: invoke data.verify {bars} --market {market} (train.market)"
_MAX_SHIFT = 14  # hours; the farthest time zone is +14:00
Values = npt.NDArray[np.float64]


def check_bars(
    rows: pl.DataFrame,
    *,
    tf: str,
    now: datetime,
    limits: Limits | None = None,
    market: Market = "crypto",
) -> list[Finding]:
    """All findings about one symbol's rows, in row order.

    Args:
        rows: as `bars.read_rows` gives them: canonical columns, UTC bar-open timestamps, any order,
            duplicates included.
        tf: timeframe of the bars, as "1h".
        now: the time, with a time zone; later bars are in the future.
        limits: thresholds (default: `Limits()`).
        market: when bars must be there (calendars.py).

    Raises:
        UsageError: `tf` is no timeframe.
    """
    limits = limits or Limits()
    if rows.is_empty():
        return [Finding("empty", "error", -1, None, "there is not a single bar")]
    stamps = rows["timestamp"].to_physical().to_numpy()
    values = rows.select(COLUMNS[1:]).fill_null(np.nan).to_numpy()
    same = _repeats(stamps, values)
    # Comparing neighbours needs time order and each time once; rows are named as in the file.
    order = np.argsort(stamps, kind="stable")
    order = order[np.concatenate(([True], np.diff(stamps[order]) > 0))]
    series = _Series(rows=order, stamps=stamps[order], values=values[order])
    step = step_ms(tf)
    open_ = calendars.due(series.stamps, step, market)
    findings = [
        *check_timeline(stamps, step=step, now=now, same=same, limits=limits, market=market),
        *_impossible(stamps, values),
        *_stretches(series, limits, open_),
        *_spikes(series, limits),
    ]
    return sorted(findings, key=lambda finding: (finding.row, finding.check))


def check_all(
    frames: Mapping[str, pl.DataFrame],
    *,
    main: str,
    tf: str,
    now: datetime,
    limits: Limits | None = None,
    panel: Collection[str] = (),
    market: Market = "crypto",
) -> list[Finding]:
    """`check_each` and `check_beside`: all about the bars of a training of one symbol."""
    findings = check_each(frames, tf=tf, now=now, limits=limits, market=market)
    return findings + check_beside(frames, main=main, tf=tf, limits=limits, panel=panel)


def check_each(
    frames: Mapping[str, pl.DataFrame],
    *,
    tf: str,
    now: datetime,
    limits: Limits | None = None,
    market: Market = "crypto",
) -> list[Finding]:
    """`check_bars` of every asset, each finding with its symbol."""
    findings = [
        replace(finding, symbol=symbol)
        for symbol, rows in frames.items()
        for finding in check_bars(rows, tf=tf, now=now, limits=limits, market=market)
    ]
    return [_seen_elsewhere(finding, frames) for finding in findings]


def check_beside(
    frames: Mapping[str, pl.DataFrame],
    *,
    main: str,
    tf: str,
    limits: Limits | None = None,
    panel: Collection[str] = (),
) -> list[Finding]:
    """`check_together`, but for what a panel may do.

    panel: symbols that may cover other times than `main`, because only a panel trains on them.
    """
    together = check_together(frames, main=main, tf=tf, limits=limits)
    return [f for f in together if f.check != "overlap" or f.symbol not in panel]


def check_together(
    frames: Mapping[str, pl.DataFrame], *, main: str, tf: str, limits: Limits | None = None
) -> list[Finding]:
    """Findings about assets side by side: too little overlap, clocks shifted against each other.

    A clock is shifted when the correlation of one-bar returns is largest some hours apart.

    Args:
        frames: rows by symbol, as for `check_bars`.
        main: the symbol that the others are compared with.
        tf, limits: as for `check_bars`.
    """
    limits = limits or Limits()
    base = _closes(frames[main])
    findings: list[Finding] = []
    for symbol, rows in frames.items():
        if symbol != main and not rows.is_empty() and not base.is_empty():
            other = _closes(rows)
            findings += _overlap(main, base, symbol, other, limits)
            findings += _shifted(main, base, symbol, other, step_ms(tf))
    return findings


class _Series:
    """Bars in time order, each time once, with the row of the file that each came from."""

    def __init__(self, rows: npt.NDArray[np.int64], stamps: npt.NDArray[np.int64], values: Values):
        self.rows, self.stamps = rows, stamps
        self.close, self.volume = values[:, 3], values[:, 4]
        with np.errstate(
            divide="ignore", invalid="ignore"
        ):  # impossible prices are named elsewhere
            self.logs = dict(zip(_PRICES, np.log(values[:, :4]).T, strict=True))

    def finding(
        self,
        check: str,
        level: Level,
        at: int,
        detail: str,
        allow: tuple[str, float] | None = None,
        remedy: str = "",
    ) -> Finding:
        row, time = int(self.rows[at]), moment(self.stamps[at])
        return Finding(check, level, row, time, detail, allow=allow, remedy=remedy)

    def over(self, finding: Finding, first: int, last: int) -> Finding:
        """The same, about the bars from `first` to `last`."""
        return replace(finding, span=(moment(self.stamps[first]), moment(self.stamps[last])))


def _repeats(stamps: npt.NDArray[np.int64], values: Values) -> Mask:
    """Rows whose time came before (in file order) with the very same values."""
    order = np.argsort(stamps, kind="stable")
    same = np.zeros(len(stamps), dtype=np.bool_)
    equal = np.isclose(values[order[1:]], values[order[:-1]], rtol=0, atol=0, equal_nan=True)
    same[order[1:]] = (np.diff(stamps[order]) == 0) & equal.all(axis=1)
    return same


def _impossible(stamps: npt.NDArray[np.int64], values: Values) -> Iterator[Finding]:
    """Bars no market can make, each row by itself."""
    o, h, low, c, volume = values.T
    cases = (
        ("nan", ~np.isfinite(values).all(axis=1), "a value is missing or not finite"),
        ("non-positive", (values[:, :4] <= 0).any(axis=1), "a price is zero or negative"),
        ("negative-volume", volume < 0, "the volume is negative"),
        ("high-below", h < np.fmax(np.fmax(o, c), low), "high below open, close or low"),
        ("low-above", low > np.fmin(np.fmin(o, c), h), "low above open, close or high"),
    )
    for check, mask, detail in cases:
        for row in np.flatnonzero(mask):
            shown = " ".join(
                f"{name}={value:.10g}" for name, value in zip(COLUMNS[1:], values[row], strict=True)
            )
            yield Finding(check, "error", int(row), moment(stamps[row]), f"{detail} ({shown})")


def _stretches(series: _Series, limits: Limits, open_: Mask) -> Iterator[Finding]:
    """Nothing traded, or nothing moved, for many bars in a row: often an outage filled in.

    open_: where the market trades at all; a flat weekend says nothing.
    """
    if not series.volume.any():
        detail = "there is no volume: what the models see of it is always 0"
        yield Finding("no-volume", "warn", -1, None, detail)
    for start, stop in runs((series.volume == 0) & open_) if series.volume.any() else ():
        if (length := stop - start) >= limits.zero_volume_warn:
            level: Level = "error" if length >= limits.zero_volume_error else "warn"
            detail = f"{length:,} bars without volume, to {_clock(series, stop - 1)}"
            allow = ("zero_volume_error", length + 1)
            finding = series.finding("zero-volume", level, start, detail, allow)
            yield series.over(finding, start, stop - 1)
    for start, stop in runs((np.diff(series.close) == 0) & open_[1:] & open_[:-1]):
        if (length := stop - start + 1) >= limits.frozen_warn:
            level = "error" if length >= limits.frozen_error else "warn"
            detail = (
                f"close {series.close[start]:.10g} for {length:,} bars, to {_clock(series, stop)}"
            )
            allow = ("frozen_error", length + 1)
            finding = series.finding("frozen", level, start, detail, allow)
            yield series.over(finding, start, stop)


def _spikes(series: _Series, limits: Limits) -> Iterator[Finding]:
    """One bar far away and back, a wick far from all around it, a jump that stays.

    Far is measured in robust standard deviations (1.4826 x the rolling median of |log return|).
    """
    if len(series.close) < 3:
        return
    close = series.logs["close"]
    with np.errstate(invalid="ignore"):
        moves = np.diff(close)
    scale = _scale(moves)
    out, back = moves[:-1], moves[1:]
    far = np.abs(out) > np.maximum(limits.spike_z * scale[:-1], limits.spike_min)
    reverts = (np.sign(back) == -np.sign(out)) & (np.abs(out + back) < np.abs(out) / 3)
    spiked = far & reverts
    for at in np.flatnonzero(spiked):
        size = float(out[at])
        level: Level = "error" if abs(size) > limits.spike_error else "warn"
        detail = f"close {np.expm1(size):+.1%} and back in the next bar"
        yield series.finding("spike", level, int(at) + 1, detail, _size("spike_error", size))
    near = np.zeros(len(close), dtype=np.bool_)
    near[1:-1] = spiked
    jumped = np.abs(moves) > limits.jump
    for at in np.flatnonzero(jumped & ~near[1:] & ~near[:-1]) + 1:
        yield _jump(series, int(at), float(moves[at - 1]), limits)
    yield from _wicks(series, np.concatenate((scale[:1], scale)), limits)


def _jump(series: _Series, at: int, move: float, limits: Limits) -> Finding:
    """A change that stays. No market does five times in a bar; a new unit does."""
    if abs(move) <= limits.jump_error:
        return series.finding(
            "jump", "warn", at, f"close {np.expm1(move):+.1%} in one bar, and it stays"
        )
    factor = 10.0 ** round(float(np.clip(move / np.log(10), -300, 300)))
    tenfold = abs(move - np.log(factor)) < _NEAR_TEN
    shown = f"times {np.exp(move):.4g}" if move > 0 else f"to one {np.exp(-move):.4g}th"
    guess = f"a new denomination, by {factor:g}?" if tenfold else "another unit, or another asset?"
    return series.finding(
        "denomination",
        "error",
        at,
        f"close {shown} in one bar, and it stays: {guess}",
        _size("jump_error", move),
        _unit_commands(f"{moment(series.stamps[at]):%Y-%m-%dT%H:%M}", factor if tenfold else 0.0),
    )


def _unit_commands(time: str, factor: float) -> str:
    """The commands that leave bars of one unit: the newer ones, or all after converting."""
    again = "invoke data.import ORIGINAL-FILE {bars}"
    newer = f"the newer bars alone: {again} --overwrite --since {time}"
    if not factor:
        return newer
    return (
        f"{newer}\nor all, the older ones in the new unit: "
        f"{again} --overwrite --until {time} --factor {factor:g}\n"
        f"  and then: {again} --since {time}"
    )


def _size(limit: str, move: float) -> tuple[str, float] | None:
    """The limit that lets a log return of this size pass, rounded up so that it can be typed."""
    return (limit, math.ceil(100 * abs(move)) / 100) if math.isfinite(move) else None


def _wicks(series: _Series, scale: Values, limits: Limits) -> Iterator[Finding]:
    limit = np.maximum(limits.spike_z * scale, limits.wick_min)
    opened, high, low, close = series.logs.values()
    before, after = np.roll(close, 1), np.roll(close, -1)
    before[0], after[-1] = close[0], close[-1]
    around = np.stack((opened, close, before, after))
    for name, reach in (("high", high - around.max(axis=0)), ("low", around.min(axis=0) - low)):
        for at in np.flatnonzero(reach > limit):
            share = np.expm1(reach[at]) if name == "high" else -np.expm1(-reach[at])
            level: Level = "error" if reach[at] > limits.spike_error else "warn"
            detail = f"{name} {share:.1%} beyond the prices around it"
            if (
                level == "error"
                and (times := _usual_times(series.volume, int(at))) >= _CRASH_VOLUME
            ):
                level, detail = "warn", f"{detail}, and {times:,.0f} times the usual volume"
            allow = _size("spike_error", float(reach[at]))
            yield series.finding("spike", level, int(at), detail, allow)


def _usual_times(volume: Values, at: int) -> float:
    """How many times what is usual in the bars around it was traded in this one."""
    around = volume[max(0, at - _SCALE_BARS // 2) : at + _SCALE_BARS // 2]
    usual = float(np.nanmedian(around)) if np.isfinite(around).any() else 0.0
    return float(volume[at]) / usual if usual > 0 and np.isfinite(volume[at]) else 0.0


def _seen_elsewhere(finding: Finding, frames: Mapping[str, pl.DataFrame]) -> Finding:
    """A wick that other assets had in the same bar is a crash of the market, and no wrong digit."""
    side = finding.detail.partition(" ")[0]
    if (finding.check, finding.level) != ("spike", "error") or side not in ("high", "low"):
        return finding
    for symbol, rows in frames.items():
        there = (
            rows.filter(pl.col("timestamp") == finding.time) if symbol != finding.symbol else None
        )
        if there is None or there.is_empty():
            continue
        opened, reached = there["open"][0], there[side][0]
        if opened and reached and opened > 0 and reached > 0:
            move = math.log(reached / opened)
            if abs(move) >= _CRASH_ELSEWHERE:
                detail = f"{finding.detail}; {symbol} went {math.expm1(move):+.1%} in the same bar"
                return replace(finding, level="warn", detail=detail)
    return finding


def _scale(moves: Values) -> Values:
    """Robust standard deviation of the returns around each one, centred, at least the file's own.

    The floor keeps a sleepy stretch from turning every ordinary move into a spike.
    """
    size = pl.Series(np.abs(moves)).fill_nan(None)
    middle = size.rolling_median(_SCALE_BARS, min_samples=1, center=True)
    floor = size.median()
    lowest = float(floor) if isinstance(floor, float) else 0.0
    scale: Values = 1.4826 * np.maximum(middle.fill_null(lowest).to_numpy(), lowest)
    return scale


def _closes(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.select("timestamp", "close").unique("timestamp", keep="first").sort("timestamp")


def _overlap(
    main: str, base: pl.DataFrame, symbol: str, other: pl.DataFrame, limits: Limits
) -> Iterator[Finding]:
    shared = base.join(other, on="timestamp", how="semi").height
    share = shared / base.height
    if share >= limits.overlap_warn and shared >= limits.overlap_bars:
        return
    wrong = share < limits.overlap_error or shared < limits.overlap_bars
    detail = (
        f"{symbol} has {shared:,} of {main}'s {base.height:,} bars ({share:.1%}); it runs from "
        f"{other['timestamp'][0]:%Y-%m-%d %H:%M} to {other['timestamp'][-1]:%Y-%m-%d %H:%M}"
    )
    # Two limits draw this line, and one can't be allowed for both: so it is accepted, or mended.
    yield Finding("overlap", "error" if wrong else "warn", -1, None, detail, symbol)


def _shifted(
    main: str, base: pl.DataFrame, symbol: str, other: pl.DataFrame, step: int
) -> Iterator[Finding]:
    """Markets move together in the same bar; when they do so hours apart, one clock is wrong."""
    unit = max(step, 3_600_000)
    lags = range(-(_MAX_SHIFT * 3_600_000 // unit), _MAX_SHIFT * 3_600_000 // unit + 1)
    together = {lag: _correlation(base, other, lag * unit) for lag in lags}
    lag = max(together, key=lambda lag: together[lag])
    if lag and together[lag] > max(0.3, together[0] + 0.1):
        hours = abs(lag) * unit // 3_600_000
        detail = (
            f"{symbol} moves as {main} does {hours} h {'later' if lag < 0 else 'earlier'} "
            f"(correlation {together[lag]:.2f}, at the same time {together[0]:.2f}): "
            "one of the two is not in UTC bar opens"
        )
        yield Finding("shifted", "error", -1, None, detail, symbol)


def _correlation(base: pl.DataFrame, other: pl.DataFrame, shift: int) -> float:
    """Of the returns of both, `other` moved by `shift` milliseconds; 0 on fewer than 500 bars."""
    moved = other.with_columns(pl.col("timestamp") + pl.duration(milliseconds=shift))
    pair = base.join(moved, on="timestamp", suffix="_other", maintain_order="left")
    returns = pair.select(pl.col("close", "close_other").pct_change()).to_numpy()
    returns = returns[np.isfinite(returns).all(axis=1)]
    if len(returns) < 500 or not returns.std(axis=0).all():
        return 0.0
    return float(np.corrcoef(returns.T)[0, 1])


def _clock(series: _Series, at: int) -> str:
    return f"{moment(series.stamps[at]):%Y-%m-%d %H:%M}"


HOUR = 3_600_000


@dataclass(frozen=True)
class _Switch:
    """When local clocks of a region jump: (month, which Sunday; -1 = the last)."""

    region: str
    zone: str
    spring: tuple[int, int]
    autumn: tuple[int, int]


_SWITCHES = (
    _Switch("the United States", "America/New_York", (3, 2), (11, 1)),
    _Switch("Europe", "Europe/Berlin", (3, -1), (10, -1)),
    _Switch("Australia", "Australia/Sydney", (10, 1), (4, 1)),
)


def check_timeline(
    stamps: Millis,
    *,
    step: int,
    now: datetime,
    same: Mask,
    limits: Limits,
    market: Market = "crypto",
) -> list[Finding]:
    """Every finding about time. `same[i]`: row i repeats the values of the earlier row of its time.

    Shapes: stamps and same are (N,), in file order; step in milliseconds; now with a time zone.
    """
    order = np.argsort(stamps, kind="stable")
    in_time = stamps[order]
    repeated = np.zeros(len(stamps), dtype=np.bool_)
    repeated[order[1:]] = np.diff(in_time) == 0
    return [
        *_unsorted(stamps),
        *_duplicates(stamps, repeated, same),
        *_gaps(in_time, order, step, limits, market),
        *_misaligned(stamps, step, market),
        *_local_time(in_time, order, stamps[repeated & ~same], step),
        *_not_yet(stamps, step, now),
    ]


def _unsorted(stamps: Millis) -> Iterator[Finding]:
    for start, stop in runs(np.diff(stamps) < 0):
        row, last = start + 1, stop
        if last - row + 2 == len(stamps):
            detail = "the file is newest first"
        else:
            detail = f"{_rows(row, last)} earlier than the row before"
        yield Finding("unsorted", "error", row, moment(stamps[row]), detail)


def _duplicates(stamps: Millis, repeated: Mask, same: Mask) -> Iterator[Finding]:
    for row in np.flatnonzero(repeated):
        what = "the same bar again" if same[row] else "this time again with OTHER values"
        yield Finding("duplicate", "error", int(row), moment(stamps[row]), what)


def _gaps(
    in_time: Millis, order: Millis, step: int, limits: Limits, market: Market
) -> Iterator[Finding]:
    if len(in_time) < 2:
        return
    missing = _missing(in_time, step, market)
    absent = int(missing[missing > 0].sum())
    expected = absent + int(calendars.due(np.unique(in_time), step, market).sum())
    too_many = absent > limits.missing_error * expected
    like = _rests_like(in_time, missing, step) if too_many and market not in EXCHANGES else None
    rest = _REST.format(bars="{bars}", market=like) if like else ""
    explained = _missing(in_time, step, like) == 0 if like else missing < 0
    for at in np.flatnonzero(missing > 0):
        count = int(missing[at])
        yield Finding(
            "gap",
            "error" if count > limits.gap_error else "warn",
            int(order[at + 1]),
            moment(in_time[at + 1]),
            f"{count:,} bar{'s' * (count > 1)} missing after {moment(in_time[at]):%Y-%m-%d %H:%M}",
            allow=("gap_error", count),
            span=(moment(in_time[at] + step), moment(in_time[at + 1])),
            remedy=rest if explained[at] else "",
        )
    if too_many:
        yield Finding(
            "missing",
            "error",
            -1,
            None,
            f"{absent:,} of {expected:,} bars ({absent / expected:.1%}) are missing between the "
            "first and the last: is the timeframe right?"
            + (f" Or does the market rest then, as {like} does?" if like else ""),
            allow=("missing_error", math.ceil(1000 * absent / expected) / 1000),
            remedy=rest,
        )


def _missing(in_time: Millis, step: int, market: Market) -> Millis:
    """How many bars that are due lack after each bar; shape (N - 1,)."""
    if market == "crypto":
        # Counted in slots of the grid, so that a bar stamped late is misaligned, and no gap too.
        missing: Millis = np.diff((in_time - grid_origin(step)) // step) - 1
        return missing
    lacking = np.maximum(np.diff(in_time) // step - (np.diff(in_time) % step == 0), 0)
    before = np.repeat(np.arange(len(lacking)), lacking)
    place = np.arange(len(before)) - np.repeat(np.cumsum(lacking) - lacking, lacking) + 1
    wanted = calendars.due(in_time[before] + place * step, step, market)
    return np.bincount(before[wanted], minlength=len(lacking))


def _rests_like(in_time: Millis, missing: Millis, step: int) -> Market | None:
    """The market that is closed in nearly all of what is missing, and open where bars are; or None.

    Of several the one that lacks least, and then the one in whose sessions most bars lie.
    """
    there, absent = np.unique(in_time), int(missing[missing > 0].sum())
    for markets in _RESTING:
        fits = {
            market: (
                int(_missing(in_time, step, market).sum()),
                -int(calendars.due(there, step, market).sum()),
            )
            for market in markets
        }
        best = min(markets, key=fits.__getitem__)
        lacking, due = fits[best]
        if lacking * 10 < absent and lacking * 20 < -due:
            return best
    return None


def _misaligned(stamps: Millis, step: int, market: Market) -> Iterator[Finding]:
    offset = (stamps - grid_origin(step)) % step
    for start, stop in runs((offset != 0) & ~calendars.aligned(stamps, step, market)):
        shifts = np.unique(offset[start:stop])
        detail = f"{_rows(start, stop - 1)} not on the timeframe's grid"
        if len(shifts) == 1 and stop - start > 1:
            detail += f", all {timedelta(milliseconds=int(shifts[0]))} past it: local time?"
        yield Finding("misaligned", "error", start, moment(stamps[start]), detail)


def _local_time(in_time: Millis, order: Millis, repeats: Millis, step: int) -> Iterator[Finding]:
    """Local clocks betray themselves: an hour is missing in spring and comes twice in autumn."""
    if HOUR % step or len(in_time) < 2:
        return
    jumps = np.flatnonzero(np.diff(in_time) == HOUR + step)
    lost = {
        moment(in_time[at] + step).date(): int(at) + 1
        for at in jumps
        if 1 <= moment(in_time[at] + step).hour <= 3
    }
    twice = {moment(ms).date() for ms in repeats if moment(ms).hour <= 3}
    first, last = moment(in_time[0]).date(), moment(in_time[-1]).date()
    for switch in _SWITCHES:
        springs = _sundays(switch.spring, first, last)
        autumns = _sundays(switch.autumn, first, last)
        lost_here, twice_here = springs & lost.keys(), autumns & twice
        both = bool(lost_here and twice_here)
        every = len(lost_here) >= 2 and lost_here == springs
        every |= len(twice_here) >= 2 and twice_here == autumns
        if not (both or every):
            continue
        days = ", ".join(
            [f"an hour missing on {day}" for day in sorted(lost_here)]
            + [f"an hour twice on {day}" for day in sorted(twice_here)]
        )
        day = min(lost_here | twice_here)
        at = lost.get(day) or int(np.searchsorted(in_time, _midnight(day)))
        yield Finding(
            "local-time",
            "error",
            int(order[at]),
            moment(in_time[at]),
            f"the clock switches as in {switch.region} ({days}): import again with the file's "
            f"own zone, such as --timezone {switch.zone}",
        )


def _not_yet(stamps: Millis, step: int, now: datetime) -> Iterator[Finding]:
    clock = int(now.timestamp() * 1000)
    for start, stop in runs(stamps > clock):
        detail = f"{_rows(start, stop - 1)} in the future (now is {now:%Y-%m-%d %H:%M})"
        yield Finding("future", "error", start, moment(stamps[start]), detail)
    for row in np.flatnonzero((stamps <= clock) & (stamps + step > clock)):
        left = timedelta(milliseconds=int(stamps[row]) + step - clock)
        detail = f"this bar closes in {str(left).split('.', maxsplit=1)[0]}: its values will change"
        yield Finding("unfinished", "error", int(row), moment(stamps[row]), detail)


def _rows(first: int, last: int) -> str:
    return "this row is" if first == last else f"rows {first} to {last} ({last - first + 1:,}) are"


def _sundays(rule: tuple[int, int], first: date, last: date) -> set[date]:
    month, which = rule
    days = {_sunday(year, month, which) for year in range(first.year, last.year + 1)}
    return {day for day in days if first <= day <= last}


def _sunday(year: int, month: int, which: int) -> date:
    if which < 0:
        after = date(year + month // 12, month % 12 + 1, 1)
        return after - timedelta(days=after.isoweekday() % 7 or 7)
    start = date(year, month, 1)
    return start + timedelta(days=(7 - start.isoweekday()) % 7 + 7 * (which - 1))


def _midnight(day: date) -> int:
    return (day - date(1970, 1, 1)).days * 86_400_000
