"""What the readers of model files share: what they are asked, what they give, how a file is read.

modelonnx.py and modeltrees.py read; modelrun.py runs what they give; all that in a child process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from macd.errors import first_line
from macd.host.untrusted import line

ORDINARY = (0.01, 0.1, 0.5, 1.0, 1.0, 1.0, 2.0, 3.0)  # standard deviations of the rows
WIDE = (10.0, 100.0, 1e3, 1e4, 1e5)  # for a model that expects prices: they only must differ
ROWS = len(ORDINARY) + len(WIDE)
MOST_VALUES = 20_000_000  # of one input
LARGEST_FILE = 2_000_000_000  # a protobuf holds no more
EXPORT = "export it again from its training"
PAIR = "copy both from the same training"
_LONGEST = 300

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Question:
    """path: of the model. top: the folder it may read from. features, seq: what its meta file says,
    0 for nothing. names: of the features, in order. says: what its outputs are by its meta file,
    "probabilities", "values" or "". family: whether models of its name give probabilities.
    """

    kind: str
    path: str
    top: str
    meta: str = ""
    features: int = 0
    seq: int = 0
    names: tuple[str, ...] = ()
    says: str = ""
    family: bool = False


class WrongError(Exception):
    """What is wrong with a model, the likely cause and the remedy."""

    def __init__(self, detail: str, cause: str, remedy: str) -> None:
        super().__init__(detail)
        self.detail, self.cause, self.remedy = detail, cause, remedy


class AbsentError(Exception):
    """The library that runs such a model is not installed here; the message says how to get it."""


@dataclass(frozen=True)
class Model:
    """A model that was loaded.

    shown: what it is, for people. run: numbers of made-up rows, all below ROWS -> outputs, a row
    each; None where nothing can run it. wrong: what it contradicts. fixed: the batch size that it
    is locked to, 0 for none. probabilities: whether its own file says that it gives some; None
    where it doesn't say. why: where it says so. guessed: what of its inputs had to be guessed, so
    that a failure to run proves nothing. codes: whether that is texts or categories, so that a
    constant answer proves nothing either. features: that it takes, 0 where that is
    not known. files: that hold its weights, beside it.
    """

    shown: str
    run: Callable[[Array], Sequence[Array]] | None
    wrong: Sequence[WrongError] = ()
    fixed: int = 0
    probabilities: bool | None = None
    why: str = ""
    guessed: str = ""
    codes: bool = False
    features: int = 0
    files: Sequence[str] = ()


def read(path: Path) -> bytes:
    if path.stat().st_size > LARGEST_FILE:
        raise WrongError("it is larger than 2 GB", "too large to be looked at", EXPORT)
    return path.read_bytes()


def unreadable(what: str, error: Exception) -> WrongError:
    cause = "the file is damaged, cut short, or something else"
    return WrongError(f"{what} can't read it: {said(error)}", cause, "copy it again")


def said(error: Exception) -> str:
    """The first line of what a library raised, fit for a terminal."""
    return line(first_line(error), _LONGEST)


def other_counts(counts: Sequence[int], asked: Question) -> list[WrongError]:
    """counts: of features, for each input of the model that declares one."""
    whole_windows = asked.features * asked.seq
    if not asked.features or not counts or {asked.features, whole_windows} & set(counts):
        return []
    detail = f"it takes {counts[0]} features, {asked.meta} names {asked.features}"
    return [WrongError(detail, "the model and its meta file are of two trainings", PAIR)]


def other_names(names: Sequence[str], asked: Question) -> list[WrongError]:
    """names: of its features, as the model itself has them."""
    if len(names) != len(asked.names):
        return []
    for own, other in zip(names, asked.names, strict=True):
        if own != other:
            detail = f"its feature {own} stands where {asked.meta} has {other}"
            return [WrongError(detail, "the model and its meta file are of two trainings", PAIR)]
    return []


def spread_between(low: Array, high: Array) -> Callable[[Array], Array]:
    """Made-up rows of as many features: numbers of rows -> values from `low` to `high`."""
    if len(low) * ROWS > MOST_VALUES:
        raise WrongError(
            f"it wants {len(low)} features", "no training has so many", "train it again"
        )
    draws = np.random.default_rng(7).random((ROWS, len(low)))
    return lambda rows: low + (high - low) * draws[rows]
