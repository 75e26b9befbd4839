"""The bars that a training run was made of, read again on this machine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from macd.app.market.bars import bars_path, digest_of_all, read_bars, step_ms, symbol_name
from macd.errors import MacdError, UsageError
from macd.run_directory import FILES

Bars = tuple[pl.DataFrame, dict[str, pl.DataFrame]]


@dataclass(frozen=True)
class TrainedOn:
    """Symbol, timeframe and other assets of a run."""

    symbol: str
    tf: str
    cross: tuple[str, ...]

    @classmethod
    def of_run(cls, run: Path) -> TrainedOn:
        """As the run's settings.json names them. Raises MacdError when it can't be read."""
        try:
            settings = json.loads((run / FILES.settings).read_bytes())
            tf = str(settings["tf"])
            step_ms(tf)
            cross = tuple(symbol_name(name) for name in settings["cross"])
            return cls(symbol_name(settings["symbol"]), tf, cross)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, UsageError) as error:
            raise MacdError(
                f"run {run.name} has a settings.json that can't be read",
                why=f"{type(error).__name__}: {error}".splitlines()[0],
                live="nothing was checked",
                hint=f"fetch it again: invoke train.fetch --run {run.name}",
            ) from error

    def read(self, data_dir: Path) -> Bars:
        """The bars of its symbol, and those of other assets by name."""
        main = read_bars(bars_path(data_dir, self.symbol, self.tf))
        return main, {n: read_bars(bars_path(data_dir, n, self.tf)) for n in self.cross}

    def read_same(self, data_dir: Path, *, run: Path, digest: str) -> Bars:
        """The same, held to the digest of the bars the run was trained on.

        Raises MacdError when the bars here are others.
        """
        main, cross = self.read(data_dir)
        here = digest_of_all(self.symbol, self.tf, main, cross)
        if here != digest:
            raise MacdError(
                f"the bars in {data_dir} are not those run {run.name} was trained on",
                why=f"their digest is {here[:16]}, the run's is {digest[:16]}: bars were added or "
                "corrected since",
                hint=f"put the bars of that training there, or train again on these (run: {run})",
            )
        return main, cross
