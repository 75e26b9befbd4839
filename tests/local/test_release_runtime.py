"""The whole lock of the service, installed offline as a host does, runs a release's own wheel.

Long and large (200 MB from the package index, once), so only in `make test-full`.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from macd.app.predict.scoring import MODELS
from macd.errors import MacdError
from macd.host.layout import Layout
from macd.host.rpc import blobs
from macd.host.store import runtimes
from macd.host.systemd.sandbox import DIRECT
from macd.release.wheel import build
from macd.release.wheelhouse import Target, Wheelhouse, requirements
from tests.support import wheels
from tests.support.training_run import ROOT, trained_run

_RUN = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from macd.app.predict import health, scoring
assert health.__file__.startswith(sys.argv[1]), health.__file__
scorer = scoring.Scorer.load(Path(sys.argv[2]), "1h")
assert not scorer.errors, scorer.errors
forbidden = {"torch", "pydantic", "paramiko", "fabric", "yaml"} & set(sys.modules)
assert not forbidden, forbidden
print("models:", ",".join(sorted(scorer.models)))
"""


@pytest.mark.full
def test_the_real_lock_installs_offline_and_runs_the_wheel(tmp_path: Path) -> None:
    try:
        lock, fetched = Wheelhouse(wheels.wheelhouse()).resolve(
            requirements(), Target.here(), ROOT / "constraints.txt"
        )
    except MacdError as error:
        wheels.none_to_be_had(error.why)
        raise
    app = tmp_path / "app"
    for wheel, path in zip(lock.wheels, fetched, strict=True):
        blob = Path(blobs.path_of(str(app), wheel.sha256))
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, blob)
    made = runtimes.install(Layout(str(app)), lock.raw, ["polars", "lightgbm", "onnxruntime"])
    assert made["built"] is True
    place = app / "runtimes" / lock.sha256
    wanted = [{"name": wheel.name} for wheel in lock.wheels]
    assert runtimes.wrong_with(str(place), wanted, DIRECT) == ""
    next(place.glob("lib/*/site-packages/numpy/linalg/*.so")).unlink()
    assert "numpy/linalg/" in runtimes.wrong_with(str(place), wanted, DIRECT)
    assert runtimes.install(Layout(str(app)), lock.raw, ["polars"])["built"] is True
    assert runtimes.wrong_with(str(place), wanted, DIRECT) == ""
    name, content = build(ROOT)
    (tmp_path / name).write_bytes(content)
    python = app / "runtimes" / lock.sha256 / "bin/python"
    argv = [str(python), "-I", "-c", _RUN, str(tmp_path / name), str(trained_run() / MODELS)]
    done = subprocess.run(argv, capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "models: lgbm,lstm,tft"
