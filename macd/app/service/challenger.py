"""The previous release's models on the same bars, so that a new release can be compared with it.

Which release that is, the host says: `previous` links to the one that a rollback would go to. It
was committed there, and retention keeps it. It runs with the live release's code: models are data
(ONNX, LightGBM text, JSON). Its golden predictions, features included, are computed here first. So
a release whose features this code no longer computes alike is named and not run.

It is an observer: loaded in a thread of its own after the service is ready, asked after the line is
decided, waited for LIMIT_S at most. Whatever it does, the line says it, and nothing else changes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from macd.app.market.features import feature_names
from macd.app.service import release
from macd.app.service.predictor import Predictor
from macd.app.service.settings import Flags, Settings
from macd.errors import MacdError
from macd.heads import MEAN

LINK = "previous"
LIMIT_S = 1.0
LOADING = "it is still being loaded"
_LONGEST = 300  # characters of an error on a line


class UnfitError(Exception):
    """The previous release can't be run on these bars by this code; the text says why."""


class Challenger:
    """See the module. Nothing of it raises.

    Args:
        live: the release that this process serves.
        on_change: is called with `state` each time that changes, from another thread.
        turn: is held while it loads, so that those of several symbols don't load all at once.
    """

    def __init__(
        self,
        settings: Settings,
        live: str,
        flags: Flags,
        *,
        on_change: Callable[[Mapping[str, str | None]], None] = lambda _: None,
        limit: float = LIMIT_S,
        turn: threading.Lock | None = None,
    ) -> None:
        self._settings, self._flags, self._limit = settings, flags, limit
        self._on_change, self._turn = on_change, turn or threading.Lock()
        self._predictor: Predictor | None = None
        self._release, self._why = _linked(settings.root, live), LOADING
        if self._release:
            threading.Thread(target=self._load, name="challenger", daemon=True).start()
        self._on_change(self.state)

    @property
    def state(self) -> Mapping[str, str | None]:
        """For /healthz: which release, and why it isn't asked; nothing where there is none."""
        return {"release": self._release, "error": self._why or None} if self._release else {}

    def field(
        self, head: str | None, bars: pl.DataFrame, cross: Mapping[str, pl.DataFrame]
    ) -> dict[str, Any] | None:
        """`ml_challenger` of the line about the last of `bars`, at the live release's head.

        {"release", "avg", "stacking"}, or {"release", "error"}; None where there is no release.
        """
        if not self._release:
            return None
        predictor = self._predictor
        if predictor is None or head is None:
            return self._error(self._why or "the live release's models name no head")
        prediction = predictor.predict(bars, cross)
        if prediction.errors:
            return self._error(str(prediction.fields["ml_error"]))
        said = prediction.fields
        if head == said["ml_horizon"]:  # as the live release's own numbers: not rounded
            avg, stacking = said["ml_avg_prob"], said["ml_stacking_prob"]
        else:
            heads = said["ml_heads"]
            avg, stacking = heads.get(MEAN, {}).get(head), heads.get("stacking", {}).get(head)
        if avg is None:
            return self._error(f"it has no head {head}")
        return {"release": self._release, "avg": avg, "stacking": stacking}

    def refuse(self, why: str) -> dict[str, Any] | None:
        """`ml_challenger` of a bar on which no model is asked."""
        return self._error(why) if self._release else None

    def _error(self, why: str) -> dict[str, Any]:
        return {"release": self._release, "error": why[:_LONGEST]}

    def _load(self) -> None:
        try:
            with self._turn:
                self._predictor, self._why = self._loaded(), ""
        except UnfitError as error:
            self._why = str(error)
        except MacdError as error:
            self._why = f"{error.what}: {error.why}"
        except Exception as error:  # whatever it is, it is the previous release's
            self._why = f"{type(error).__name__}: {error}"
        self._on_change(self.state)

    def _loaded(self) -> Predictor:
        settings = self._settings
        identity = release.identify(settings.root / "releases" / self._release)
        if identity.id != self._release:
            raise UnfitError(f"its directory holds {identity.id}")
        if wrong := release.changed_files(identity):  # before anything of it is parsed
            raise UnfitError(f"not as signed: {', '.join(wrong[:5])}")
        tf = identity.manifest.details.get("tf")
        if tf != settings.tf:
            raise UnfitError(f"its timeframe is {tf}, the service's {settings.tf}")
        loaded = release.load(identity, settings.tf, settings.symbol)
        if loaded.scorer is None or not loaded.outcome.ok:
            raise UnfitError(f"this release's code can't run it: {loaded.outcome.detail}")
        unknown = set(loaded.scorer.computed) - set(feature_names(settings.cross))
        if unknown:
            shown = ", ".join(sorted(unknown)[:3])
            raise UnfitError(f"{len(unknown)} of its features are not computed here: {shown}")
        flags = Flags(0, self._flags.min_samples, {})
        return Predictor(loaded.scorer, flags, settings.tf, limit=self._limit)


def _linked(root: Path, live: str) -> str:
    """The release that the host says a rollback would go to; "" for none."""
    try:
        parent, _, name = str((root / LINK).readlink()).partition("/")
    except OSError:
        return ""
    is_release = parent == "releases" and "/" not in name and name not in ("", ".", "..", live)
    return name if is_release else ""
