"""What an application is, to the tool that trains, releases, serves and judges it.

This is the one place where the tool meets the application: its commands. run_directory.py names the
files that a training leaves. host/judge/parse.py names the fields of a log line that are judged,
for the host half judges without this file. The tool knows no model library. What it must ask about
models, it asks the application's own commands, in a limited child process (childprocess.py).

Questions about training settings and bars are answered in this process: they load no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macd import childprocess
from macd.checklist import Item
from macd.childprocess import EndedError, Limits
from macd.errors import MacdError, unless_failed

if TYPE_CHECKING:
    from macd.app.train.settings import Settings as Settings  # noqa: PLC0414 - for others, too

_LIMITS = Limits(cpu_s=600, timeout_s=900)
# torch's build for CUDA maps much memory, and torch writes to a temporary file.
_TORCH_LIMITS = Limits(memory_bytes=64 << 30, cpu_s=900, timeout_s=1200, file_bytes=1 << 30)
_FOLDER_LIMITS = Limits(cpu_s=3600, timeout_s=7200)  # each model in it has limits of its own


@dataclass(frozen=True)
class Application:
    """One application, as data. A command is what follows `python -m`.

    check, onnx: JSON in and out; each answers a list of items. runs: compares two trainings. serve:
    the module of the service that app/serve.py of a release starts, and that `--check` asks on a
    host before a switch.
    sources: what a training host needs of the package, rooms and files.
    """

    train: str = "macd.app.train"
    check: str = "macd.app.predict"
    onnx: str = "macd.app.train.onnx_check"
    runs: str = "macd.app.train.compare_runs"
    serve: str = "macd.app.service.__main__"
    sources: tuple[str, ...] = (
        *("__init__.py", "childprocess.py", "checklist.py", "criteria.py", "errors.py", "heads.py"),
        *("run_directory.py", "train_options.py"),
        *("host", "app/__init__.py", "app/market", "app/predict", "app/train"),
    )


@dataclass(frozen=True)
class Proof:
    """What the application says of the files of a release: its golden predictions and checks."""

    golden: Mapping[str, Any]
    features_schema: str
    items: list[Item]


BUILTIN = Application()


# Models.


def check_release(top: Path, *, tf: str, lock: Mapping[str, str], symbol: str = "") -> list[Item]:
    """Every check of a release. lock: package -> version that must be installed here.

    symbol: what the service is to watch; "" asks nothing about that.
    """
    question = {"top": str(top.absolute()), "tf": tf, "lock": dict(lock), "symbol": symbol}
    items = _items(_ask("check", question))
    return [*items, *_compared(top, tf, None)]


def check_run(run: Path, data_dir: Path) -> list[Item]:
    """Every check of a training run, on the bars in `data_dir`.

    Raises MacdError when its settings or those bars can't be read.
    """
    question = {"run": str(run.absolute()), "data": str(data_dir.absolute())}
    answer = _ask("check-run", question)
    return [*_items(answer), *_compared(run, answer["tf"], answer["inputs"])]


def check_folder(top: Path) -> list[Item]:
    """Every check of a folder of models that no run here made."""
    return _items(_ask("folder", {"top": str(top.absolute())}, _FOLDER_LIMITS))


def prove(
    top: Path, *, run: Path, tf: str, data_dir: Path, digest: str, lock: Mapping[str, str]
) -> Proof:
    """Run the models that lie in `top` on the run's own bars, and check them.

    Raises MacdError when the bars are others than the run's, or no model runs on them.
    """
    question = {
        "top": str(top.absolute()),
        "run": str(run.absolute()),
        "data": str(data_dir.absolute()),
        "digest": digest,
        "lock": dict(lock),
    }
    answer = _ask("prove", question)
    items = [*_items(answer), *_compared(top, tf, answer["golden"])]
    return Proof(answer["golden"], answer["features_schema"], items)


def compare_runs(champion: Path, challenger: Path) -> dict[str, Any]:
    """Two trainings on the same bars, and what differs between them: verdict, parts, limits.

    Raises UsageError's exit code when they are of different symbols or timeframes, MacdError when
    a table is missing or they have no bar in common.
    """
    question = {"champion": str(champion.absolute()), "challenger": str(challenger.absolute())}
    try:
        answer = childprocess.ask(BUILTIN.runs, question, _LIMITS)
    except EndedError as error:
        raise MacdError(
            "the runs can't be compared",
            why=f"python -m {BUILTIN.runs}: {error}",
            live="nothing was changed",
            hint="fetch the runs again (invoke train.fetch); make setup installs what it needs",
        ) from error
    return unless_failed(answer)


def _compared(top: Path, tf: str, inputs: Mapping[str, Any] | None) -> list[Item]:
    question = {"top": str(top.absolute()), "tf": tf, "inputs": inputs}
    try:
        return _items(childprocess.ask(BUILTIN.onnx, question, _TORCH_LIMITS))
    except EndedError as error:
        cause = "torch or onnxruntime ended its process, or the machine is too small"
        return [Item("ONNX against torch", False, str(error), cause, "invoke health, once more")]


def _ask(command: str, question: Mapping[str, Any], limits: Limits = _LIMITS) -> dict[str, Any]:
    """The answer of one of the application's checks. Raises MacdError."""
    try:
        answer = childprocess.ask(f"{BUILTIN.check} {command}", question, limits)
    except EndedError as error:
        raise MacdError(
            "the models can't be checked",
            why=f"python -m {BUILTIN.check} {command}: {error}",
            live="nothing was changed",
            hint="a damaged model file can do that: invoke health --dir names it; "
            "make setup installs what it needs",
        ) from error
    return unless_failed(answer)


def _items(answer: Mapping[str, Any]) -> list[Item]:
    return [Item(**item) for item in answer["items"]]


# Training.


def train_settings(request: Mapping[str, Any]) -> Settings:
    """The settings of a training, checked. Raises UsageError naming every wrong one."""
    from macd.app.train.settings import settings_from  # noqa: PLC0415 - loads polars

    return settings_from(request)


def symbol_name(symbol: str) -> str:
    """The name of a symbol in files, such as ETHUSDT. Raises UsageError."""
    from macd.app.market import bars  # noqa: PLC0415 - loads polars

    return bars.symbol_name(symbol)


def bars_path(data_dir: Path, symbol: str, tf: str) -> Path:
    """Where the bars of a symbol lie, whether they are there or not."""
    from macd.app.market import bars  # noqa: PLC0415 - loads polars

    return bars.bars_path(data_dir, symbol, tf)


def existing_bars(data_dir: Path, symbols: Sequence[str], tf: str) -> dict[str, Path]:
    """The files of bars by symbol. Raises UsageError naming the first that is missing."""
    from macd.app.market import bars  # noqa: PLC0415 - loads polars

    paths = {name: bars.bars_path(data_dir, name, tf) for name in map(symbol_name, symbols)}
    for path in paths.values():
        if not path.is_file():
            raise bars.no_bars(path)
    return paths


@dataclass(frozen=True)
class CheckedBars:
    """What the checks say of a symbol's bars. note: of what was accepted or only warns."""

    symbol: str
    count: int
    errors: list[str]
    note: str


def check_bars(data: Mapping[str, Path], settings: Settings, now: datetime) -> list[CheckedBars]:
    """Check the bars of a training; the first symbol is the one trained on.

    Raises MacdError for a file that is not there or holds no bars.
    """
    from macd.app.market.bars import read_rows  # noqa: PLC0415
    from macd.app.market.checks import Limits as BarLimits  # noqa: PLC0415
    from macd.app.market.checks import check_all  # noqa: PLC0415
    from macd.app.market.findings import counted, judged  # noqa: PLC0415 - loads polars

    frames = {symbol: read_rows(path) for symbol, path in data.items()}
    main, limits = next(iter(frames)), BarLimits().changed(settings.limits)
    panel = set(settings.panel_others) - {symbol_name(name) for name in settings.cross}
    findings = check_all(frames, main=main, tf=settings.tf, now=now, limits=limits, panel=panel)
    findings = judged(findings, settings.accept)
    checked = []
    for symbol, rows in frames.items():
        mine = [finding for finding in findings if finding.symbol == symbol]
        errors = [str(finding) for finding in mine if finding.level == "error"]
        checked.append(CheckedBars(symbol, rows.height, errors, counted(mine)))
    return checked


def event_line(event: Mapping[str, Any]) -> str:
    """The line for people of an event that a training reported; "" where there is none."""
    from macd.app.train.events import human_line  # noqa: PLC0415 - only following needs it

    return human_line(dict(event))


def write_training_page(run: Path, *, host: str, others: Mapping[str, Path]) -> Path:
    """Write the report of a run into its directory. Raises MacdError when it can't be made.

    others: runs that it is compared with, by what they are ("the previous run"). Where one can't
    be compared the page says why.
    """
    from macd.app.pages import training  # noqa: PLC0415 - loads polars

    compared: dict[str, Mapping[str, Any]] = {}
    for what, other in others.items():
        try:
            compared[what] = compare_runs(other, run)
        except MacdError as error:
            compared[what] = {"unable": f"{error.what}: {error.why}" if error.why else error.what}
    return training.write(run, host=host, compared=compared)
