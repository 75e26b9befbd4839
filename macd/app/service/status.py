"""What the service knows of itself, for /healthz and /metrics: written by the loop, read by all."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from macd.app.predict.golden import Outcome
from macd.heads import FAMILIES

_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 10.0)
_MODES = ("live", "shadow", "off")


class Status:
    """The state of one life of the service.

    state: "starting", "ok" or "failed". Changing it and reading it whole is safe from any thread.
    """

    def __init__(self, flags: Mapping[str, str]) -> None:
        self._held = threading.Lock()
        self._facts: dict[str, Any] = {
            "status": "starting",
            "release": None,
            "manifest_sha256": None,
            "pid": os.getpid(),
            "started": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            "golden": {"ok": False, "max_diff": None, "detail": "not run yet"},
            "flags": dict(flags),
            "last_bar": None,
            "last_error": None,
            "seq": 0,
            "models": {},
            "stacking": "off",
            "feed": {"state": "starting", "last_arrival": None},
        }
        self._metrics = _Metrics()

    def set(self, **facts: Any) -> None:
        """Change some of what /healthz says."""
        with self._held:
            self._facts.update(facts)

    def golden(self, outcome: Outcome) -> None:
        """How the golden predictions came out on this machine."""
        diff = outcome.max_diff if math.isfinite(outcome.max_diff) else None
        self.set(golden={"ok": outcome.ok, "max_diff": diff, "detail": outcome.detail})

    def error(self, what: str) -> None:
        """Something went wrong and the service goes on."""
        self.set(last_error=what[:1000])

    def feed(self, state: str, *, arrived: bool = False) -> None:
        with self._held:
            before = self._facts["feed"]
            at = time.time() if arrived else before["last_arrival"]
            self._facts["feed"] = {"state": state, "last_arrival": at}

    def warned(self, event: str) -> None:
        """A line that is no signal was written: a bar refused, a feed in trouble."""
        self._metrics.refused.labels(event).inc()

    def signalled(self, bar: str, seq: int, fields: Mapping[str, Any], seconds: float) -> None:
        """A signal line was written."""
        self.set(last_bar=bar, seq=seq)
        self._metrics.signal(str(fields.get("ml_stacking_mode")), seconds)

    def bar(self) -> None:
        self._metrics.bars.inc()

    def model_error(self, name: str) -> None:
        self._metrics.errors.labels(name).inc()

    def document(self) -> dict[str, Any]:
        """What /healthz answers."""
        with self._held:
            return dict(self._facts)

    def metrics(self) -> bytes:
        """What /metrics answers, in Prometheus' text form."""
        return self._metrics.render(self.document())


class _Metrics:
    """A registry of its own, so that nothing is global."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        here = self.registry
        self.bars = Counter("macd_bars", "closed bars that arrived", registry=here)
        self.signals = Counter("macd_signals", "signal lines written", registry=here)
        self.refused = Counter(
            "macd_warnings",
            "lines that are no signal: refused bars, trouble",
            ["event"],
            registry=here,
        )
        self.errors = Counter(
            "macd_model_errors", "bars a model failed on", ["model"], registry=here
        )
        self.latency = Histogram(
            "macd_bar_seconds",
            "features, models and decision of a bar",
            buckets=_BUCKETS,
            registry=here,
        )
        self._mode = Gauge(
            "macd_stacking_mode", "1 for the mode of the last bar", ["mode"], registry=here
        )
        self._age = Gauge("macd_last_bar_age_seconds", "since a bar last arrived", registry=here)
        self._up = Gauge("macd_ok", "1 while /healthz says ok", registry=here)
        self._seq = Gauge("macd_seq", "of the last line", registry=here)
        for family in (*FAMILIES, "stacking"):
            self.errors.labels(family)

    def signal(self, mode: str, seconds: float) -> None:
        self.signals.inc()
        self.latency.observe(seconds)
        for each in _MODES:
            self._mode.labels(each).set(each == mode)

    def render(self, facts: Mapping[str, Any]) -> bytes:
        arrived = facts["feed"]["last_arrival"]
        self._age.set(time.time() - arrived if arrived else math.nan)
        self._up.set(facts["status"] == "ok")
        self._seq.set(facts["seq"])
        return generate_latest(self.registry)
