"""An exchange as ccxt presents it, asked patiently: the only module that uses ccxt and its errors.

ccxt respects the rate limits. What fails on the network is reported and tried again, with growing
pauses.
"""

from __future__ import annotations

import difflib
import importlib
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from threading import Lock
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit, urlunsplit

import numpy as np
import polars as pl

from macd.app.market import empty
from macd.app.market.bars import SCHEMA, step_ms
from macd.app.market.findings import moment
from macd.errors import MacdError, UsageError, first_line
from macd.symbols import symbol_name

PAGE = 1000
_TRIES = 7  # waits 1 + 2 + 4 + ... + 32 s: a minute in all
_LONGEST_WAIT = 300.0  # an exchange that wants more than this has banned us for a while
T = TypeVar("T")


class Exchange(Protocol):
    """What is used of a ccxt exchange; its errors are ccxt's."""

    id: str
    symbols: list[str]
    timeframes: dict[str, Any]
    last_response_headers: dict[str, str] | None
    last_http_response: str | None
    last_json_response: Any

    has: dict[str, Any]

    def load_markets(self) -> Any: ...
    def fetch_time(self) -> Any: ...
    def fetch_ohlcv(self, symbol: str, timeframe: str, since: int, limit: int) -> Any: ...


def open_exchange(name: str, *, symbol: str = "", api_url: str = "") -> Exchange:
    """A ccxt exchange by name, rate-limited, with the proxies of the environment (HTTPS_PROXY).

    api_url: another server that speaks the exchange's API (a mirror, a reverse proxy): scheme, host
    and port of every address are replaced, paths stay. Raises UsageError for an unknown name.
    """
    ccxt = _ccxt()
    if name not in ccxt.exchanges:
        near = difflib.get_close_matches(name.lower(), ccxt.exchanges, n=3, cutoff=0.5)
        raise UsageError(
            f"there is no exchange {name!r}",
            why=f"ccxt {ccxt.__version__} knows {len(ccxt.exchanges)} of them",
            hint=f"--exchange {near[0] if near else 'binance'}"
            + (f"    (or {', '.join(near[1:])})" if len(near) > 1 else ""),
        )
    exchange = getattr(ccxt, name)(
        {
            "enableRateLimit": True,
            "requests_trust_env": True,
            "enableLastJsonResponse": True,
            "enableLastHttpResponse": True,
        }
    )
    if name.startswith("binance"):  # one list of markets is asked for, not those of three servers
        exchange.options["fetchMarkets"] = {"types": ["linear" if ":" in symbol else "spot"]}
    if api_url:
        exchange.urls["api"] = _moved(exchange.urls["api"], api_url)
    return exchange  # type: ignore[no-any-return]


class _Pace:
    """One rate limit of several objects of an exchange, each of which would keep one of its own."""

    def __init__(self, ms: float) -> None:
        self._s, self._last, self._lock = ms / 1000, 0.0, Lock()

    def throttle(self, cost: float | None = None) -> None:
        with self._lock:
            now = time.monotonic()
            self._last = max(now, self._last + self._s * (1 if cost is None else cost))
            pause = self._last - now
        time.sleep(pause)


def beside(exchange: Any, many: int, *, api_url: str = "") -> list[Exchange]:
    """So many more objects of an exchange whose markets are loaded, for a thread each.

    One that two threads ask at a time would mix up their answers. All keep one rate limit.
    """
    pace, made = _Pace(exchange.rateLimit), []
    for _ in range(many):
        another: Any = open_exchange(exchange.id, api_url=api_url)
        another.enableRateLimit = exchange.enableRateLimit
        another.throttle = pace.throttle
        if hasattr(another, "set_markets_from_exchange"):  # else it loads them itself
            another.set_markets_from_exchange(exchange)
        made.append(another)
    return made


def spot_markets(exchange: Exchange, names: Sequence[str]) -> dict[str, str]:
    """The exchange's own name of each of ours that it has: ETHUSDT is ETH/USDT, the spot market.

    Its markets must be loaded.
    """
    by_name: dict[str, str] = {}
    for market in exchange.symbols:
        if ":" not in market:
            by_name.setdefault(symbol_name(market), market)
    return {name: by_name[name] for name in names if name in by_name}


def no_market(exchange: Exchange, lacking: Sequence[str]) -> MacdError:
    """What to say where an exchange has none of that name."""
    return MacdError(
        f"{exchange.id} has no market for {', '.join(lacking)}",
        why="none of its spot markets has that name",
        hint="in the inventory: service.feed.exchange, service.symbol, or train.symbol and "
        "train.cross",
    )


class Asking:
    """Questions to one exchange, each tried again while network or rate limit are in the way.

    sleep(seconds) waits between tries; report(line) reports trouble; `requests` counts.
    """

    def __init__(
        self, exchange: Exchange, *, sleep: Callable[[float], None], report: Callable[[str], None]
    ) -> None:
        self.exchange, self.requests = exchange, 0
        self._sleep, self._report = sleep, report

    def require(self, symbol: str, tf: str) -> None:
        """UsageError unless the exchange trades this symbol and has this timeframe."""
        self._patiently("the list of markets", self.exchange.load_markets)
        _require_known(self.exchange, symbol, tf)

    def markets(self, names: Sequence[str]) -> dict[str, str]:
        """See `spot_markets`; asks for the list."""
        self._patiently("the list of markets", self.exchange.load_markets)
        return spot_markets(self.exchange, names)

    def clock(self, now: datetime) -> datetime:
        """`now`, or the exchange's own time where that is earlier: a bar closes by its clock."""
        if not self.exchange.has.get("fetchTime"):
            return now
        ccxt = _ccxt()

        def call() -> datetime:
            answer = self.exchange.fetch_time()
            if not isinstance(answer, int) or answer <= 0:
                raise ccxt.NetworkError(f"the answer is no time: {answer!r}")
            return moment(answer)

        return min(now, self._patiently("the time", call))

    @property
    def leaves_out(self) -> bool:
        """Whether candles without a trade are missing in its answers, by its own documentation."""
        return empty.leaves_out(self.exchange.id)

    def page(self, symbol: str, tf: str, start: int) -> pl.DataFrame:
        """Bars from `start` (epoch milliseconds) on, as many as the exchange gives at once.

        The last may still be open. Where `leaves_out`, candles without a trade are put back
        between the bars of the answer: ask from a bar that you have, so none is missed before it.

        Raises MacdError when the exchange refuses, or can't be reached after several tries.
        """
        ccxt = _ccxt()

        def call() -> pl.DataFrame:
            answer = self.exchange.fetch_ohlcv(symbol, tf, since=start, limit=PAGE)
            # ccxt makes "no bars" of an answer that isn't JSON, such as a proxy's login page;
            # believed, that would leave a hole.
            if self.exchange.last_json_response is None or not _are_bars(answer):
                shown = self.exchange.last_http_response or ""
                raise ccxt.NetworkError(f"the answer is not a list of bars: {shown[:80]}")
            return _frame(answer)

        page = self._patiently(f"bars from {moment(start):%Y-%m-%d %H:%M}", call)
        if not self.leaves_out:
            return page
        return empty.fill(page.unique("timestamp").sort("timestamp"), step_ms(tf))

    def _patiently(self, what: str, call: Callable[[], T]) -> T:
        ccxt = _ccxt()
        for attempt in range(_TRIES):
            self.requests += 1
            try:
                return _read(call)
            except ccxt.OperationFailed as error:  # network, rate limit, 5xx, maintenance
                pause = max(2.0**attempt, self._retry_after(error))
                if attempt == _TRIES - 1 or pause > _LONGEST_WAIT:
                    raise self._given_up(what, error, pause) from error
                self._report(f"{_words(error)}; trying again in {pause:.0f} s")
                self._sleep(pause)
            except ccxt.BaseError as error:
                raise MacdError(
                    f"{self.exchange.id} refuses {what}",
                    why=first_line(error)[:300],
                    hint="check --symbol, --tf and --exchange; some refuse some countries",
                ) from error
        raise AssertionError("unreachable: the last try returns or raises")

    def _retry_after(self, error: Exception) -> float:
        ccxt = _ccxt()
        if not isinstance(error, ccxt.DDoSProtection | ccxt.RateLimitExceeded):
            return 0.0
        headers = self.exchange.last_response_headers or {}
        value = headers.get("Retry-After", "")
        return float(value) if value.isdigit() else 0.0

    def _given_up(self, what: str, error: Exception, pause: float) -> MacdError:
        hint = "the same command goes on from there; behind a proxy: HTTPS_PROXY, or --api-url URL"
        if pause > _LONGEST_WAIT:
            hint = f"the exchange asks to wait {pause:,.0f} s; then the same command goes on"
        return MacdError(
            f"{self.exchange.id} can't be reached for {what}",
            why=_words(error),
            hint=hint,
        )


def _read(call: Callable[[], T]) -> T:
    """An answer that breaks ccxt itself is one more that can't be used; the next may do."""
    try:
        return call()
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        message = f"the answer can't be read: {type(error).__name__}: {error}"
        raise _ccxt().NetworkError(message) from error


def _are_bars(answer: Any) -> bool:
    return isinstance(answer, list) and all(
        isinstance(row, list)
        and len(row) == 6
        and all(isinstance(cell, int | float) for cell in row)
        for row in answer
    )


def _frame(rows: list[list[float]]) -> pl.DataFrame:
    values = np.array(rows, dtype=np.float64).reshape(-1, 6)
    frame = pl.DataFrame(values, schema=list(SCHEMA), orient="row")
    stamp = pl.col("timestamp").cast(pl.Int64).cast(pl.Datetime("ms"))
    return frame.with_columns(stamp.dt.replace_time_zone("UTC"))


def _require_known(exchange: Exchange, symbol: str, tf: str) -> None:
    if symbol not in exchange.symbols:
        base = symbol.upper().partition("/")[0].partition("-")[0]
        near = difflib.get_close_matches(symbol.upper(), exchange.symbols, n=5, cutoff=0.6)
        near += [name for name in exchange.symbols if name.startswith(f"{base}/")][:5]
        near = list(dict.fromkeys(near))
        raise UsageError(
            f"{exchange.id} has no market {symbol!r}",
            why=f"similar: {', '.join(near)}" if near else "nothing like it is traded there",
            hint=f"--symbol {near[0]}" if near else "--symbol BASE/QUOTE, such as BTC/USDT",
        )
    if tf not in exchange.timeframes:
        raise UsageError(
            f"{exchange.id} has no {tf} bars",
            why=f"it has {', '.join(exchange.timeframes)}",
            hint="--tf 1h",
        )


def _moved(urls: Any, base: str) -> Any:
    if isinstance(urls, dict):
        return {name: _moved(url, base) for name, url in urls.items()}
    if not isinstance(urls, str):
        return urls
    new, old = urlsplit(base), urlsplit(urls)
    if new.scheme not in ("http", "https") or not new.netloc:
        raise UsageError(f"--api-url {base!r} is not an address", hint="--api-url https://HOST")
    path = new.path.rstrip("/") + old.path
    return urlunsplit((new.scheme, new.netloc, path, old.query, ""))


def _ccxt() -> Any:
    try:
        return importlib.import_module("ccxt")
    except ImportError as error:
        raise MacdError(
            "ccxt is not installed, and fetching needs it",
            why=str(error),
            hint="pip install 'macd[fetch]', or import a dump: invoke data.import FILE",
        ) from error


def _words(error: Exception) -> str:
    """What ccxt says, and the network's own words: of those ccxt keeps the address alone."""
    cause = error.__cause__ or error.__context__
    reason = getattr(next(iter(cause.args if cause else ()), None), "reason", None)
    network = f": {str(reason).rpartition(': ')[2]}" if reason else ""
    return f"{first_line(error)[:300]}{network[:200]}"
