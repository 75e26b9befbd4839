"""What a source of closed bars looks like to the loop, whether a file, a folder or an exchange."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from macd.app.service.settings import Settings


@dataclass(frozen=True)
class Bar:
    """One closed bar as it arrived, not yet judged. `open_ms`: epoch milliseconds of its open."""

    symbol: str
    open_ms: int
    open: float
    high: float
    low: float
    close: float
    volume: float


@dataclass(frozen=True)
class Trouble:
    """Something that kept bars from arriving or could not be read as one; worth a line."""

    symbol: str
    event: str
    detail: str


@dataclass(frozen=True)
class Fresh:
    """Forget what came before: the bars start anew behind this history (a replay's next lap)."""

    history: Mapping[str, Sequence[Bar]]


Item = Bar | Trouble | Fresh


class Feed(Protocol):
    """Bars of the cross symbols come before the bar of the main symbol with the same time.

    live: bars are of now, so that one which comes late is stale. state: a word for /healthz.
    """

    live: bool
    state: str

    def begin(self, need: int, after_ms: int | None) -> Mapping[str, Sequence[Bar]]:
        """The last `need` closed bars of each symbol, oldest first, up to `after_ms` if given.

        after_ms: open of the last bar that was dealt with before; what closed since comes by
        `wait`. Raises MacdError when there is no way to bars at all (it may be tried again).
        """

    def wait(self, seconds: float) -> Sequence[Item]:
        """What arrived, after at most about this long; nothing is a good answer. Never raises."""


def open_feed(settings: Settings, alive: Callable[[], None] = lambda: None) -> Feed:
    """The feed that service.json names. alive: the watchdog's sign of life, for long beginnings."""
    if settings.feed.kind == "replay":
        from macd.app.service.feed_replay import ReplayFeed  # noqa: PLC0415 - only what is used

        return ReplayFeed(settings)
    if settings.feed.kind == "directory":
        from macd.app.service.feed_directory import DirectoryFeed  # noqa: PLC0415

        return DirectoryFeed(settings)
    from macd.app.service.feed_ccxt import CcxtFeed  # noqa: PLC0415 - ccxt is large

    return CcxtFeed(settings, alive=alive)
