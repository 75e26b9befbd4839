"""Releases made by the product's own code from the shared tiny training."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from macd.app.predict import __main__ as predict
from macd.application import Proof
from macd.checklist import Item
from macd.inventory import Criterion
from macd.release import build, judge, wheel
from macd.release import run as runs
from macd.release.build import BuildRequest
from macd.release.lock import Lock, Wheel
from macd.release.signing import sign
from macd.release.store import Release, Store
from macd.release.verify import Signers
from tests.support.signed_files import IDENTITY, make_key
from tests.support.training_run import ROOT, bars_directory, trained_run

CREATED = datetime(2026, 3, 1, 12, 0, 5, tzinfo=UTC)
WARNS = {
    name: Criterion(threshold=threshold, level="warn")
    for name, threshold in (("lstm_val_auc", 0.57), ("n_oof", 10000))
}
CONTENT = b"not a real wheel: nothing here installs it"
LOCK = Lock(
    "3.11",
    "linux-x86_64-glibc-2.36",
    (
        Wheel(
            "pip",
            "25.3",
            "pip-25.3-py3-none-any.whl",
            len(CONTENT),
            "38eed0714b610df76ff07c211f43fd7adbd1bdff81494766334ed9b35f936093",
        ),
    ),
)


@contextmanager
def proving_here(
    top: Path, *, run: Path, data_dir: Path, digest: str, lock: Mapping[str, str]
) -> Iterator[Callable[[], Proof]]:
    """As application.proving, in this process and without torch: quicker, and the same words."""
    answer = predict.prove(
        {"top": str(top), "run": str(run), "data": str(data_dir), "digest": digest, "lock": lock}
    )
    items = [Item(**item) for item in answer["items"]]
    yield lambda: Proof(answer["golden"], answer["features_schema"], items)


@dataclass(frozen=True)
class Workshop:
    """A place to make releases in: its store, its key, and who may sign."""

    top: Path
    key: Path
    signers: Signers

    @property
    def store(self) -> Store:
        return Store(self.top / "releases")

    @property
    def wheel(self) -> Path:
        return self.top / LOCK.wheels[0].file

    def request(self, run: Path | None = None, **changes: Any) -> BuildRequest:
        finished = runs.read(run or trained_run())
        request = BuildRequest(
            run=finished,
            host="h800",
            findings=judge.judge(
                finished.criteria, WARNS, finished.audit, finished.metrics, finished.stacking
            ),
            app="macd-analysis",
            env="prod",
            serial=7,
            created=CREATED,
            lifetime=timedelta(days=30),
            accepted="",
            code=wheel.Code("0.1.0", "c" * 40, False),
            lock=LOCK,
            source=self.top / "source",
            data_dir=bars_directory(trained_run()),
            versions={},
        )
        return replace(request, **changes)

    def make(
        self,
        request: BuildRequest | None = None,
        *,
        sign_with: Callable[[bytes], bytes] | None = None,
        proving: Callable[..., AbstractContextManager[Callable[[], Proof]]] = proving_here,
    ) -> Release:
        made, _ = build.make(
            request or self.request(),
            self.store,
            sign=sign_with or (lambda raw: sign(raw, key=self.key)),
            wheels=[self.wheel],
            proving=proving,
        )
        return made


def workshop(top: Path) -> Workshop:
    key = make_key(top)
    public = key.with_suffix(".pub").read_text().strip()
    allowed = top / "allowed_signers"
    allowed.write_text(f'{IDENTITY} namespaces="release-manifest@macd" {public}\n')
    shop = Workshop(top, key, Signers(allowed, IDENTITY))
    shop.wheel.write_bytes(CONTENT)
    # A copy: the tree may be edited while tests run, and two releases are compared byte for byte.
    junk = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "macd", top / "source/macd", ignore=junk)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, top / "source")
    return shop


def copy_of_run(tmp_path: Path) -> Path:
    """The training's directory, to spoil; result.json still lists the files as they were."""
    return Path(shutil.copytree(trained_run(), tmp_path / "run", ignore=_no_cache))


def _no_cache(_: str, names: list[str]) -> list[str]:
    return [name for name in names if name == "cache"]
