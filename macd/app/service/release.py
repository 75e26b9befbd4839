"""The one release this process runs: read once through `current`, checked, its models loaded.

A release directory never changes, and this process never looks at `current` again: a switch is a
new process. Models that are damaged are a result and not an error, so that the base signal goes on;
only a release that can't be identified stops the service. `check` asks the same before a release is
made live (`serve.py --check`).
"""

from __future__ import annotations

import hashlib
import importlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from macd.app.predict import golden
from macd.app.predict.golden import Outcome
from macd.app.predict.scoring import MODELS, ModelError, Scorer, Shared
from macd.app.service.settings import Settings
from macd.errors import MacdError, UsageError
from macd.host.durable import sha256_of
from macd.host.store import manifest as manifests
from macd.host.store.manifest import Manifest, ManifestError

SYMBOLS = "symbols"


@dataclass(frozen=True)
class Identity:
    """Which release it is. `sha256`: of its manifest, as the signer saw it."""

    id: str
    directory: Path
    sha256: str
    manifest: Manifest

    @property
    def symbols(self) -> tuple[str, ...]:
        """The symbols of a release of several; () of one symbol's."""
        return manifests.several_of(self.manifest.details)

    def tree(self, symbol: str) -> Path:
        """Where this symbol's models lie, as in a release of one symbol."""
        return self.directory / SYMBOLS / symbol if symbol in self.symbols else self.directory


@dataclass(frozen=True)
class Loaded:
    """The models (None: none of them loads) and how the golden predictions came out here.

    unknown: why none of them can score the bars that the service watches; "" where some can.
    """

    scorer: Scorer | None
    outcome: Outcome
    models: dict[str, str]
    unknown: str = ""


def identify(directory: Path) -> Identity:
    """Read the manifest of a release directory (or of a link to one).

    Raises MacdError when there is none, or it does not belong to the directory's name.
    """
    here = directory.resolve()
    try:
        raw = (here / "manifest.json").read_bytes()
        identifier = manifests.release_id(raw)
        parsed = manifests.parse(raw)
    except (OSError, ManifestError) as error:
        raise MacdError(
            f"{directory} holds no release", why=str(error), hint="invoke deploy"
        ) from error
    if identifier != here.name:
        raise MacdError(
            f"{here} holds another release than its name says",
            why=f"its manifest is that of {identifier}",
            hint="invoke deploy; the old directory was changed by hand",
        )
    return Identity(identifier, here, hashlib.sha256(raw).hexdigest(), parsed)


def load_all(identity: Identity, tf: str, symbols: Sequence[str]) -> Iterator[tuple[str, Loaded]]:
    """`load` for each of several symbols; what is the same for some of them is loaded once."""
    changed, shared = changed_files(identity), Shared()
    shared.prove((identity.tree(symbol) / MODELS for symbol in symbols), tf)
    for symbol in symbols:
        yield symbol, load(identity, tf, symbol, changed=changed, shared=shared)


def load(
    identity: Identity,
    tf: str,
    symbol: str = "",
    *,
    changed: Sequence[str] | None = None,
    shared: Shared | None = None,
) -> Loaded:
    """Load the models and recompute the golden predictions; never raises for broken models.

    symbol: whose bars are to be scored; "" for the asset that the release was trained on. changed:
    as `changed_files` answers, where that was asked before.
    """
    if identity.symbols:
        symbol = symbol or identity.symbols[0]
        if symbol not in identity.symbols:
            why = f"the release has no models of {symbol}; it has {', '.join(identity.symbols)}"
            return Loaded(None, _bad(why), {"all": why}, unknown=why)
    top = identity.tree(symbol)
    changed = changed_files(identity) if changed is None else changed
    changed = [why for why in changed if _concerns(why, identity, symbol)]
    try:
        scorer = Scorer.load(top / MODELS, tf, shared=shared)
    except ModelError as error:
        return Loaded(None, _bad(f"no model can be loaded: {error}"), {"all": str(error)})
    document = golden.read(top)
    if document is None:
        outcome = _bad("the release has no golden predictions that can be read")
    else:
        outcome = golden.check(document, scorer)
    try:
        serving = scorer.on(symbol or scorer.symbol)
    except MacdError as error:
        why = f"{error.what}: {error.why}"
        return Loaded(None, _bad(why), {"all": error.what}, unknown=why)
    if changed:
        named = ", ".join(changed[:5])
        outcome = Outcome(False, outcome.max_diff, f"not as signed: {named}; {outcome.detail}")
    models = {**dict.fromkeys(serving.models, "ok"), **serving.errors}
    if serving.stacking is not None:
        models["stacking"] = "ok"
    return Loaded(serving, outcome, models)


def _concerns(changed: str, identity: Identity, symbol: str) -> bool:
    """Whether a file that is not as signed is this symbol's, or all symbols'."""
    others = f"{SYMBOLS}/"
    return not (identity.symbols and changed.startswith(others)) or changed.startswith(
        f"{others}{symbol}/"
    )


def changed_files(identity: Identity) -> list[str]:
    """Files that are not what the signed manifest lists, with what is wrong with each."""
    wrong = []
    for file in identity.manifest.files:
        path = identity.directory / file.path
        try:
            digest = sha256_of(path)
        except OSError as error:
            wrong.append(f"{file.path} ({error.strerror})")
            continue
        if digest != file.sha256:
            wrong.append(f"{file.path} (changed)")
    return wrong


def _bad(detail: str) -> Outcome:
    return Outcome(False, math.inf, detail)


_MOST_NAMED = 5
_NEEDED = ("loop", "health", "feed", "feed_directory")


def check(directory: Path, root: Path) -> dict[str, Any]:
    """Import everything the service needs, load the release, run its golden predictions.

    root: the application's directory, whose settings say which feed is needed.
    """
    # What the loop imports is part of the question: a missing package must show before a switch.
    for name in _NEEDED:
        importlib.import_module(f"macd.app.service.{name}")
    lacking = _lacking_for_the_feed(root)
    if lacking:
        return {"ok": False, "detail": lacking}
    try:
        identity = identify(directory)
        tf = str(identity.manifest.details["tf"])
        outcome, models = _checked(identity, tf)
    except (MacdError, KeyError) as error:
        return {"ok": False, "detail": str(error)}
    diff = outcome.max_diff
    return {
        "ok": outcome.ok,
        "release": identity.id,
        "manifest_sha256": identity.sha256,
        "golden": {
            "ok": outcome.ok,
            "max_diff": diff if math.isfinite(diff) else None,
            "detail": outcome.detail,
        },
        "models": models,
        "detail": outcome.detail,
        **({"symbols": list(identity.symbols)} if identity.symbols else {}),
    }


def _checked(identity: Identity, tf: str) -> tuple[Outcome, Mapping[str, Any]]:
    """How the golden predictions come out, and each model is; of several symbols, the faulty."""
    if not identity.symbols:
        loaded = load(identity, tf)
        return loaded.outcome, loaded.models
    outcomes, models = {}, {}
    for symbol, loaded in load_all(identity, tf, identity.symbols):
        outcomes[symbol] = loaded.outcome
        if wrong := faulty(loaded):
            models[symbol] = wrong
    return together(outcomes), models


def faulty(loaded: Loaded) -> dict[str, str]:
    """Its models that are not as they should be, with what is wrong with each."""
    return {name: said for name, said in loaded.models.items() if said != "ok"}


def together(outcomes: Mapping[str, Outcome]) -> Outcome:
    """One outcome of several symbols': the symbols that fail are named, with the first's reason."""
    failed = [symbol for symbol, outcome in outcomes.items() if not outcome.ok]
    worst = max((outcome.max_diff for outcome in outcomes.values()), default=0.0)
    if not failed:
        return Outcome(True, worst, f"the golden predictions of {len(outcomes)} symbols agree")
    named = ", ".join(failed[:_MOST_NAMED]) + (" and others" if failed[_MOST_NAMED:] else "")
    why = f"{len(failed)} of {len(outcomes)} symbols fail ({named}): {failed[0]}: "
    return Outcome(False, worst, why + outcomes[failed[0]].detail)


def _lacking_for_the_feed(root: Path) -> str:
    """What the feed of these settings needs and this runtime has not; empty when all is there."""
    try:
        settings = Settings.read(root)
        if settings.feed.kind == "ccxt":
            importlib.import_module("ccxt")
    except UsageError:
        return ""  # they may come with the switch; the new process then says what is wrong
    except ImportError as error:
        return f"the feed of service.json needs ccxt, which is not in the release's lock: {error}"
    return ""
