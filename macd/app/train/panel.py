"""A panel: several assets whose rows train one model together, purged by time and not by row.

Every asset has the same features by the same formulas: its own columns, none of other assets. Its
bars may begin later, end earlier or have gaps; it then gives fewer rows. A fit gets of every asset
only rows whose bar and longest label lie before one border in time: the first bar that the tested
asset's own training part does not hold any more. Lopez de Prado 2018, chapter 7, purges a single
series; assets that move together need it all the more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from macd.app.market.features import asset_column
from macd.app.market.splits import LONGEST
from macd.app.train.dataset import Dataset
from macd.app.train.fitdata import Block, FitData, Floats, Rows


@dataclass(frozen=True)
class Asset:
    """One asset's bars: float32 X (N, F) and y (N, 3), `times_ms` its bars' opens.

    first: the first row with a whole window. ends_ms: the open of the bar that the longest label of
    each row looks at; the largest number there is where that bar does not exist yet.
    """

    symbol: str
    times_ms: Rows
    X: Floats
    y: Floats
    first: int
    features: tuple[str, ...]

    @property
    def ends_ms(self) -> Rows:
        unknown = np.full(LONGEST, np.iinfo(np.int64).max)
        return np.concatenate([self.times_ms[LONGEST:], unknown])[: len(self.times_ms)]

    def rows_before(self, border_ms: int) -> Rows:
        """The rows whose bar and longest label lie before the border: int64, rising."""
        before = self.ends_ms < border_ms
        before[: self.first] = False
        return np.flatnonzero(before)


@dataclass(frozen=True)
class Panel:
    """The assets of a training, the one that is tested first; their columns are named alike."""

    assets: tuple[Asset, ...]
    tf: str

    @property
    def tested(self) -> Asset:
        return self.assets[0]

    def border_ms(self, trained: Rows) -> int:
        """The first bar after these rows of the tested asset's training part."""
        return int(self.tested.times_ms[int(trained[-1]) + 1])

    def rows_of_others(self, trained: Rows) -> int:
        """How many rows the other assets give to a fit on these rows of the tested one."""
        border = self.border_ms(trained)
        return sum(len(asset.rows_before(border)) for asset in self.assets[1:])

    def training_data(self, trained: Rows, stop: Rows | None) -> FitData:
        """What a fit may use, of all assets; `stop`: rows of the tested one for early stopping."""
        border = self.border_ms(trained)
        parts, blocks, rows, start = [], [], [], 0
        for asset in self.assets:
            mine = asset.rows_before(border)
            used = mine if stop is None or asset is not self.tested else np.union1d(mine, stop)
            if not used.size:
                continue  # it began to trade after the border
            end = int(used.max()) + 1
            visible = np.full((end, asset.y.shape[1]), np.nan, dtype=np.float32)
            visible[used] = asset.y[used]
            parts.append((asset.X[:end], visible))
            blocks.append(
                Block(asset.symbol, start, asset.times_ms[:end], asset.ends_ms[:end]),
            )
            rows.append(start + mine[~np.isnan(visible[mine]).all(axis=1)])
            start += end
        return FitData(
            X=np.concatenate([X for X, _ in parts]),
            rows=np.concatenate(rows),
            y=np.concatenate([y for _, y in parts]),
            stop_rows=stop,
            features=self.tested.features,
            tf=self.tf,
            blocks=tuple(blocks),
        )


# By a dataset's identity, the set of features and all flags: itself, with these columns, and flags.
Made = dict[tuple[int, str, tuple[str, ...]], tuple[Dataset, Dataset, Floats]]


def of(
    symbol: str,
    data: Dataset,
    others: Mapping[str, Dataset],
    params: Any = None,
    *,
    made: Made | None = None,
) -> Panel:
    """The panel that a model of these parameters is trained on; `data` is the tested asset's.

    Without parameters its columns are nobody's, and its times and rows are what counts.

    params.features: a set of features, without other assets' columns. params.assets: one more
    column for each asset, 1 on its own bars and 0 on all others, so that a model can tell them
    apart (nets have it). made: kept between the panels of several symbols, which have most in
    common; with many assets it would not fit into memory again and again.
    """
    chosen = getattr(params, "features", "all")
    which = "own" if chosen == "all" else chosen
    names = tuple(sorted({symbol, *others}))
    flags = names if params and getattr(params, "assets", True) else ()
    kept = {} if made is None else made
    assets = []
    for name, each in {symbol: data, **others}.items():
        key = (id(each), which, flags)
        if key not in kept:
            seen = each.columns(which)
            kept[key] = each, seen, _with_flags(seen.X, [flag == name for flag in flags])
        _, seen, X = kept[key]
        assets.append(
            Asset(
                symbol=name,
                times_ms=seen.times_ms,
                X=X,
                y=seen.y,
                first=seen.first,
                features=(*seen.features, *map(asset_column, flags)),
            )
        )
    return Panel(tuple(assets), data.tf)


def _with_flags(X: Floats, raised: list[bool]) -> Floats:
    if not raised:
        return X
    flags = np.tile(np.array(raised, dtype=np.float32), (len(X), 1))
    return np.concatenate([X, flags], axis=1)
