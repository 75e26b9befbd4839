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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from macd.app.predict import golden
from macd.app.predict.golden import Outcome
from macd.app.predict.scoring import MODELS, ModelError, Scorer
from macd.app.service.settings import Settings
from macd.errors import MacdError, UsageError
from macd.host.durable import sha256_of
from macd.host.store import manifest as manifests
from macd.host.store.manifest import Manifest, ManifestError


@dataclass(frozen=True)
class Identity:
    """Which release it is. `sha256`: of its manifest, as the signer saw it."""

    id: str
    directory: Path
    sha256: str
    manifest: Manifest


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


def load(identity: Identity, tf: str, symbol: str = "") -> Loaded:
    """Load the models and recompute the golden predictions; never raises for broken models.

    symbol: whose bars are to be scored; "" for the asset that the release was trained on.
    """
    changed = _changed_files(identity)
    try:
        scorer = Scorer.load(identity.directory / MODELS, tf)
    except ModelError as error:
        return Loaded(None, _bad(f"no model can be loaded: {error}"), {"all": str(error)})
    document = golden.read(identity.directory)
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


def _changed_files(identity: Identity) -> list[str]:
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
        loaded = load(identity, tf)
    except (MacdError, KeyError) as error:
        return {"ok": False, "detail": str(error)}
    diff = loaded.outcome.max_diff
    return {
        "ok": loaded.outcome.ok,
        "release": identity.id,
        "manifest_sha256": identity.sha256,
        "golden": {
            "ok": loaded.outcome.ok,
            "max_diff": diff if math.isfinite(diff) else None,
            "detail": loaded.outcome.detail,
        },
        "models": loaded.models,
        "detail": loaded.outcome.detail,
    }


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
