"""The one release this process runs: found once through `current`, checked, its models loaded.

A release directory never changes, and this process never looks at `current` again: a switch is a
new process. What is wrong with the models is a finding and not an error, so that the base signal
goes on; only a release that can't be identified stops the service.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

from macd.app.predict import golden
from macd.app.predict.golden import Outcome
from macd.app.predict.scoring import MODELS, ModelError, Scorer
from macd.errors import MacdError
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
    """The models (None: none of them loads) and how the golden predictions came out here."""

    scorer: Scorer | None
    outcome: Outcome
    models: dict[str, str]


def identify(directory: Path) -> Identity:
    """Read the manifest of a release directory (or of a link to one).

    Raises MacdError when there is none, or it does not belong to the directory's name.
    """
    here = directory.resolve()
    try:
        raw = (here / "manifest.json").read_bytes()
        found = manifests.release_id(raw)
        parsed = manifests.parse(raw)
    except (OSError, ManifestError) as error:
        raise MacdError(
            f"{directory} holds no release", why=str(error), hint="invoke deploy"
        ) from error
    if found != here.name:
        raise MacdError(
            f"{here} holds another release than its name says",
            why=f"its manifest is that of {found}",
            hint="invoke deploy; the old directory was changed by hand",
        )
    return Identity(found, here, hashlib.sha256(raw).hexdigest(), parsed)


def load(identity: Identity, tf: str) -> Loaded:
    """Load the models and recompute the golden predictions; never raises for broken models."""
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
    if changed:
        named = ", ".join(changed[:5])
        outcome = Outcome(False, outcome.max_diff, f"not as signed: {named}; {outcome.detail}")
    models = {**dict.fromkeys(scorer.models, "ok"), **scorer.errors}
    if scorer.stacking is not None:
        models["stacking"] = "ok"
    return Loaded(scorer, outcome, models)


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
