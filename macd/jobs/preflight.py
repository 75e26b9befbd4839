"""Checks before a training starts: the bars here, the machine there; all at once, changing nothing.

A check is a value. Its caller decides whether a training may start: only if none failed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macd.application import check_bars
from macd.inventory import TrainSettings
from macd.inventory.own_app import OwnApp
from macd.ssh.facts import Clock, Facts
from macd.ssh.session import Finished, Session

if TYPE_CHECKING:
    from macd.application import Settings

_SHOWN = 3
_CLOCK_S = 5.0
_IMPORT_S = 180.0
_OTHER_PYTHON = "set `python` of this host in the inventory to the one that trains"
_NOT_OURS = "chown it on the host, or name another work_dir of this host in the inventory"
NO_GPU = (
    "nvidia-smi on the host says why its driver shows none; where the CPU is to train, set"
    " require_gpu: false under train: of the inventory"
)
# What imports as what, and the name pip knows it by.
PACKAGES = {
    "numpy": "numpy",
    "polars": "polars",
    "talib": "TA-Lib",
    "torch": "torch",
    "lightgbm": "lightgbm",
    "sklearn": "scikit-learn",
    "scipy": "scipy",
    "joblib": "joblib",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
}
# What makes an environment for an application of the team's own; it belongs to Python itself.
VENV = {"venv": "", "ensurepip": ""}
# Really imported, in one process: a wheel for another CPU or a missing library shows only then.
_PROBE = """
import importlib, json, sys
from importlib import metadata
answer = {"python": list(sys.version_info[:3]), "packages": {}, "errors": {}, "cuda": None}
for module, name in json.loads(sys.argv[1]).items():
    try:
        importlib.import_module(module)
        answer["packages"][name or module] = metadata.version(name) if name else ""
    except BaseException as error:
        answer["errors"][name or module] = f"{type(error).__name__}: {error}"
if "torch" in sys.modules:
    torch = sys.modules["torch"]
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    answer["cuda"] = [torch.cuda.get_device_name(i) for i in range(count)]
print("\\n" + json.dumps(answer))
"""


@dataclass(frozen=True)
class Needs:
    """What a training takes of its host's Python.

    packages: module -> the name to install it by. lacking, hint: what it means that some don't
    import, and what helps. instead: said in place of versions where the application brings its
    packages. torch: the card is to be one that torch can use.
    """

    packages: Mapping[str, str] = field(default_factory=lambda: PACKAGES)
    lacking: str = "don't import there"
    hint: str = "on the host: python -m pip install {names}"
    instead: str = ""
    torch: bool = True


def needs_of(app: OwnApp | None) -> Needs:
    """Of the application of an inventory; None: of the built-in one."""
    if app is None:
        return Needs()
    setup = app.train.setup if app.train else None
    return Needs(
        VENV if setup else {},
        "it can't make an environment",
        "on the host, as root: apt-get install python3-venv",
        f"those of {setup}" if setup else "the host's own: train.setup names no file",
        torch=False,
    )


@dataclass(frozen=True)
class Check:
    """One check: `level` is ok, warn or error; `hint` is what to do about an error."""

    name: str
    level: str
    detail: str
    hint: str = ""

    def as_json(self) -> dict[str, str]:
        """As printed with --json; `told` is the detail's name up to 0.1."""
        return {**asdict(self), "told": self.detail}


def check_data(data: Mapping[str, Path], settings: Settings, now: datetime) -> list[Check]:
    """The bars that would travel. The first symbol is the one trained on.

    Raises MacdError for a file that is not there or holds no bars.
    """
    checks = []
    for bars in check_bars(data, settings, now):
        symbol, tf = bars.symbol, settings.tf
        detail = f"{symbol} {tf}, {bars.count:,} bars"
        if bars.errors:
            worst = "\n".join(bars.errors[:_SHOWN])
            hint = f"invoke data.verify --symbol {symbol} --tf {tf} --data {data[symbol].parent}"
            count = len(bars.errors)
            checks.append(Check("data", "error", f"{detail}: {count} errors\n{worst}", hint))
        else:
            checks.append(Check("data", "ok", detail + bars.note))
    return checks


def look(
    session: Session, work: str, python: str, packages: Mapping[str, str]
) -> tuple[Facts, Finished, dict[str, Any] | None]:
    """Ask the host, in as few round trips as there are: facts, imports, the newest run."""
    names = session.submit("facts", disks=[work])
    runs = session.submit("job_list", work=work)
    probe = session.run([python, "-c", _PROBE, json.dumps(packages)], timeout=_IMPORT_S, cwd="/")
    newest = None
    if runs.result()["runs"]:
        newest = session.call("job_status", work=work)
    return Facts.of(names.result(), session.clock), probe, newest


def check_host(
    facts: Facts,
    probe: Finished,
    newest: Mapping[str, Any] | None,
    train: TrainSettings,
    needs: Needs = Needs(),
    room: int = 0,
) -> list[Check]:
    """Checks from what `look` observed. room: bytes that what is sent takes."""
    imports = answer_of(probe)
    return [
        _runs(newest),
        _disk(facts, max(train.min_free_gb, room / 1e9)),
        _clock(facts.clock),
        *(_python(imports, needs) if imports else [_no_answer(probe)]),
        _gpu(facts, imports, needs, required=train.require_gpu),
    ]


def _runs(newest: Mapping[str, Any] | None) -> Check:
    if newest is None or newest["state"] != "RUNNING":
        return Check("free", "ok", "no training in progress")
    run = newest["run"]
    hint = f"invoke train.attach --run {run}, or invoke train.cancel --run {run}"
    return Check("free", "error", f"run {run} is in progress", hint)


def _disk(facts: Facts, wanted_gb: float) -> Check:
    disk = facts.disks[0]
    detail = f"{disk.free / 1e9:.1f} GB free in {disk.path}"
    if not disk.writable:
        return Check("disk", "error", f"{disk.path} can't be written", _NOT_OURS)
    if disk.free < wanted_gb * 1e9:
        wanted = f"{wanted_gb:,.0f}" if wanted_gb >= 10 else f"{wanted_gb:.2g}"
        hint = "remove old runs under work_dir/runs and work_dir/cache, or lower train.min_free_gb"
        return Check("disk", "error", f"{detail}, {wanted} GB wanted", hint)
    return Check("disk", "ok", detail)


def _clock(clock: Clock) -> Check:
    detail = f"clock {clock.offset:+.1f} s (± {clock.error:.1f} s) against this machine"
    if abs(clock.offset) - clock.error > _CLOCK_S:
        hint = "timedatectl set-ntp true, on whichever of the two is wrong"
        return Check("clock", "warn", detail, hint)
    return Check("clock", "ok", detail)


def answer_of(probe: Finished) -> dict[str, Any] | None:
    """The JSON object on the last line of a program's output; None where there is none."""
    try:
        imports = json.loads(probe.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return None
    return imports if isinstance(imports, dict) else None


def _no_answer(probe: Finished) -> Check:
    why = probe.stderr.decode("utf-8", "replace").strip()[-300:]
    how = "gave no answer in time" if probe.timed_out else f"ended with {probe.exit}"
    return Check("python", "error", f"importing the packages {how}\n{why}", _OTHER_PYTHON)


def _python(imports: Mapping[str, Any], needs: Needs) -> list[Check]:
    version = ".".join(map(str, imports["python"]))
    checks = [Check("python", "ok", f"Python {version}")]  # an older one can't run the agent
    errors = imports["errors"]
    if errors:
        listed = "\n".join(f"{name}: {why}" for name, why in errors.items())
        hint = needs.hint.format(names=" ".join(errors))
        return [*checks, Check("packages", "error", f"{needs.lacking}\n{listed}", hint)]
    shown = ", ".join(f"{name} {version}" for name, version in imports["packages"].items())
    return [*checks, Check("packages", "ok", needs.instead or shown)]


def _gpu(facts: Facts, imports: Mapping[str, Any] | None, needs: Needs, *, required: bool) -> Check:
    """The cards that torch can use; else the driver's, for only the stages will show that."""
    cards = (imports or {}).get("cuda") or []
    if not needs.torch:
        cards = [card.name for card in facts.gpus]
    if cards:
        return Check("gpu", "ok", ", ".join(cards))
    if not required:
        return Check("gpu", "ok", "none needed, none usable: the CPU trains")
    if facts.gpus:
        names = ", ".join(card.name for card in facts.gpus)
        hint = "install the torch build for the driver's CUDA version"
        return Check("gpu", "error", f"{names} is there, but torch can't use it", hint)
    return Check("gpu", "error", "no GPU, and the inventory requires one", NO_GPU)
