"""What an application is, to the tool that trains, releases, serves and judges it.

`of` describes the application of an inventory: the built-in one and a team's own by the same
fields. The rest is what only the built-in one can be asked: its commands. run_directory.py names
the files that a training leaves. host/judge/parse.py names the fields of a log line that are
judged, for the host half judges without this file. The tool knows no model library. What it must
ask about models, it asks the application's own commands, in a limited child process
(childprocess.py).

Questions about training settings and bars are answered in this process: they load no model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macd import childprocess
from macd.checklist import Item, of_several
from macd.childprocess import EndedError, Limits
from macd.errors import MacdError, unless_failed
from macd.host.flag import flag_file
from macd.host.judge.own import compares
from macd.host.own import BUILT_IN, Flag, Probe, Rate, Service, Signals
from macd.run_directory import FILES, symbols_in

if TYPE_CHECKING:
    from macd.app.train.settings import Settings as Settings  # noqa: PLC0414 - for others, too
    from macd.inventory import Inventory
    from macd.inventory.models import FeedSettings, ServiceSettings
    from macd.inventory.own_app import OwnApp, SignalsApp, UnitApp

_LIMITS = Limits(cpu_s=600, timeout_s=900)
# torch's build for CUDA maps much memory, and torch writes to a temporary file.
_TORCH_LIMITS = Limits(memory_bytes=64 << 30, cpu_s=900, timeout_s=1200, file_bytes=1 << 30)
_TWO = 2  # child processes of a check: the models, and torch beside them
_FOLDER_LIMITS = Limits(cpu_s=3600, timeout_s=7200)  # each model in it has limits of its own


@dataclass(frozen=True)
class Unit:
    """A unit that goes live with a release.

    template: its file in templates/; "" where the inventory wants no such unit. command: what it
    runs in the application's tree; "" where the template says it. ready: what proves that it
    serves; of the built-in application its health endpoint does.
    """

    template: str
    command: str = ""
    ready: Probe = field(default_factory=Probe)


@dataclass(frozen=True)
class Application:
    """What is trained, released, served and judged: the built-in application or a team's own.

    name: "" for the built-in one. ends: its units by what follows the host's `unit`, the main one
    first. variables: what .env is to hold, the flag in shadow. writes: directories below the
    host's app_dir that survive releases. check: what a host runs before it switches, with {app}
    and {release}; () where the release's signed manifest says it. requirements: the file in its
    source that names its packages, "" for none. signals: how to read its lines; None where they
    are the built-in one's (macd/host/judge/parse.py), or nobody described them.
    feed: where its bars come from; None where the tool does not know its bars: then there are no
    golden predictions, no drift of features and no replay either. env_is_known: .env holds nothing
    but what the inventory names. deployed_alone: what provision finds live it leaves to a deploy.
    """

    name: str
    ends: Mapping[str, Unit]
    variables: Mapping[str, str]
    writes: tuple[str, ...]
    flag: Flag | None
    check: tuple[str, ...] = ()
    requirements: str = ""
    signals: Signals | None = None
    feed: FeedSettings | None = None
    env_is_known: bool = False
    deployed_alone: bool = True

    @property
    def has_weights(self) -> bool:
        """Whether stacking may decide with a part of its weight."""
        return self.flag == flag_file.BUILT_IN

    @property
    def lines_known(self) -> bool:
        """Whether the gate can read its lines."""
        return not self.name or self.signals is not None

    @property
    def compares(self) -> bool:
        """Whether its lines say enough to compare stacking with the mean of the models."""
        return not self.name or (self.signals is not None and compares(self.signals))

    @property
    def more(self) -> list[str]:
        """Its further units, by the end of their names."""
        ends = [end for end, unit in self.ends.items() if unit.command]
        return [end.removeprefix("-").removesuffix(".service") for end in ends[1:]]

    def units(self, unit: str) -> dict[str, Unit]:
        """Its units by name, the main one first. unit: as the inventory of a host has it."""
        return {f"{unit}{end}": described for end, described in self.ends.items()}

    def service(self, unit: str) -> Service:
        """What a host has to know of a team's own."""
        units = {name: described.ready for name, described in self.units(unit).items()}
        return Service(self.name, units, self.writes, self.flag, self.signals)


def of(inventory: Inventory) -> Application:
    """The application of an inventory."""
    if inventory.app is None:
        return built_in(inventory.service, served(inventory))
    return of_own(inventory.app)


def served(inventory: Inventory) -> tuple[str, ...]:
    """The symbols that the built-in one gives signals on: those of service, else all trained on."""
    service, train = inventory.service, inventory.train
    if service.symbol:
        return (service.symbol,)
    return service.symbols or train.symbols or (train.symbol,)


def built_in(service: ServiceSettings, symbols: Sequence[str] = ()) -> Application:
    """The one that macd ships with: one process for all symbols, or an instance for each."""
    start = ("{release}/runtime/bin/python", "-I", "{release}/app/serve.py", "--root", "{app}")
    socket = Unit("service.socket.j2" if service.socket else "")
    unit = Unit("service.unit.j2")
    ends = {".service": unit, ".socket": socket}
    if service.instances:
        ends = {f"@{symbol}.service": unit for symbol in symbols}
        ends |= {".service": Unit(""), ".socket": Unit("")}
    return Application(
        name=BUILT_IN.name,
        ends=ends,
        variables={flag_file.FLAG: flag_file.SHADOW, **service.env},
        writes=BUILT_IN.writes,
        flag=BUILT_IN.flag,
        check=(*start, "--check", "--release", "{release}"),
        feed=service.feed,
        env_is_known=True,
        deployed_alone=service.instances,  # else provision would start and stop some
    )


def of_own(app: OwnApp) -> Application:
    """A team's own, as the inventory describes it."""
    flag = Flag(**app.flag.model_dump()) if app.flag else None
    in_env = {flag.name: flag.shadow} if flag and flag.where == "env" else {}
    more = {f"-{name}.service": _unit(unit) for name, unit in app.serve.more.items()}
    return Application(
        name=app.name,
        ends={".service": _unit(app.serve), **more},
        variables={**in_env, **app.serve.env},
        writes=app.serve.writes,
        flag=flag,
        requirements=app.serve.requirements or "",
        signals=_signals(app.signals) if app.signals else None,
    )


def _unit(unit: UnitApp) -> Unit:
    ready = unit.ready
    probe = Probe(ready.http, ready.notify, ready.log, ready.running)
    return Unit("own.service.unit.j2", unit.command, probe)


def _signals(signals: SignalsApp) -> Signals:
    rates = {name: Rate(**rate.model_dump()) for name, rate in signals.rates.items()}
    return Signals(signals.files, signals.level, dict(signals.map), rates)


@dataclass(frozen=True)
class Commands:
    """What the built-in application answers. A command is what follows `python -m`.

    check, onnx: JSON in and out; each answers a list of items. runs: compares two trainings. fetch:
    brings bars up to now, for a schedule. serve:
    the module of the service that app/serve.py of a release starts, and that `--check` asks on a
    host before a switch. replay: the version of the questions that its `--replay` answers; an audit
    asks no release that names another one.
    sources: what a training host needs of the package, rooms and files.
    """

    train: str = "macd.app.train"
    check: str = "macd.app.predict"
    onnx: str = "macd.app.train.onnx_check"
    runs: str = "macd.app.train.compare_runs"
    fetch: str = "macd.app.market.fetch"
    serve: str = "macd.app.service.__main__"
    replay: int = 1
    sources: tuple[str, ...] = (
        *("__init__.py", "childprocess.py", "checklist.py", "criteria.py", "errors.py", "heads.py"),
        *("run_directory.py", "sizes.py", "symbols.py", "train_options.py"),
        *("host", "app/__init__.py", "app/market", "app/predict", "app/train"),
    )


@dataclass(frozen=True)
class Proof:
    """What the application says of the files of a release: its golden predictions and checks."""

    golden: Mapping[str, Any]
    features_schema: str
    items: list[Item]


BUILTIN = Commands()
NOT_KNOWN = Item(
    "golden predictions, feature skew",
    ok=True,
    detail="an application of one's own has none; its check, the probe and the gate stand for it",
    done=False,
)


# Models.


def check_release(
    top: Path, *, tf: str, lock: Mapping[str, str], symbol: str = "", symbols: Sequence[str] = ()
) -> list[Item]:
    """Every check of a release. lock: package -> version that must be installed here.

    symbol: what the service is to watch; "" asks nothing about that. symbols: of a release of
    several all of them; each is checked by itself.
    """
    trees = {name: FILES.of_symbol(top, name) for name in symbols} or {symbol: top}

    def question(name: str, tree: Path) -> dict[str, Any]:
        watched = "" if symbols else name
        return {"top": str(tree.absolute()), "tf": tf, "lock": dict(lock), "symbol": watched}

    questions = [
        _checking("check", question(*each), {"top": str(each[1].absolute()), "tf": tf})
        for each in trees.items()
    ]
    items = dict(zip(trees, childprocess.answers(questions, _TWO), strict=True))
    return of_several(items) if symbols else items[symbol]


def check_run(run: Path, data_dir: Path) -> list[Item]:
    """Every check of a training run, on the bars in `data_dir`.

    Raises MacdError when its settings or those bars can't be read.
    """
    symbols = symbols_in(run)
    questions = []
    for tree in [FILES.of_symbol(run, name) for name in symbols] or [run]:
        question = {"run": str(tree.absolute()), "data": str(data_dir.absolute())}
        questions.append(_checking("check-run", question, {**question, "top": question["run"]}))
    items = childprocess.answers(questions, _TWO)
    return of_several(dict(zip(symbols, items, strict=True))) if symbols else items[0]


def check_folder(top: Path) -> list[Item]:
    """Every check of a folder of models that no run here made."""
    return _items(_ask("folder", {"top": str(top.absolute())}, _FOLDER_LIMITS))


def check_own(tree: Path, *, check: str = "", lock: Mapping[str, str] | None = None) -> list[Item]:
    """Every check of the models in the tree of an application of the team's own.

    What is known of the built-in one alone is said where it would stand. check: the command by
    which that application checks itself, "" for none. lock: package -> version on its hosts.
    """
    answer = _ask("folder", {"top": str(tree.absolute()), "own": True}, _FOLDER_LIMITS)
    whose = f"not run: {check}; a release and a deploy run it" if check else "it declares none"
    there = "those of the lock are for the hosts, not for this machine"
    others = ", ".join(_other_readers(lock or {}))
    if others:
        there += f"; the models were run with {others}"
    return [
        _not_here("dependencies", there),
        *_items(answer),
        NOT_KNOWN,
        _not_here("check", whose),
    ]


def _other_readers(lock: Mapping[str, str]) -> list[str]:
    """Libraries of models that are of another version here than on the hosts, in words."""
    differences = []
    for name in ("onnxruntime", "lightgbm", "xgboost", "catboost"):
        with suppress(metadata.PackageNotFoundError):
            here = metadata.version(name)
            if lock.get(name, here) != here:
                differences.append(f"{name} {here} here, where the lock has {lock[name]}")
    return differences


def _not_here(name: str, why: str) -> Item:
    return Item(name, True, why, done=False)


@contextmanager
def proving(
    top: Path, *, run: Path, data_dir: Path, digest: str, lock: Mapping[str, str]
) -> Iterator[Callable[[], Proof]]:
    """Run the models that lie in `top` on the run's own bars, and check them, while others are.

    What is called waits for the proof. Raises MacdError when the bars are others than the run's, or
    no model runs on them.
    """
    question = {
        "top": str(top.absolute()),
        "run": str(run.absolute()),
        "data": str(data_dir.absolute()),
        "digest": digest,
        "lock": dict(lock),
    }
    files = {name: question[name] for name in ("top", "run", "data")}
    with _comparing(files) as compared, _asked("prove", question) as answer:

        def proof() -> Proof:
            said = answer()
            return Proof(said["golden"], said["features_schema"], [*_items(said), *compared()])

        yield proof


def prove(questions: Sequence[AbstractContextManager[Callable[[], Proof]]]) -> list[Proof]:
    """The proofs of `proving`, of as many side by side as there are cores for."""
    return childprocess.answers(questions, _TWO)


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


@contextmanager
def _comparing(question: Mapping[str, Any]) -> Iterator[Callable[[], list[Item]]]:
    """Compare ONNX with torch beside the other checks: torch alone takes seconds to import."""
    with childprocess.asked(BUILTIN.onnx, question, _TORCH_LIMITS) as answer:

        def compared() -> list[Item]:
            try:
                return _items(answer())
            except EndedError as error:
                cause = "torch or onnxruntime ended its process, or the machine is too small"
                remedy = "invoke health, once more"
                return [Item("ONNX against torch", False, str(error), cause, remedy)]

        yield compared


@contextmanager
def _checking(
    command: str, question: Mapping[str, Any], compared_with: Mapping[str, Any]
) -> Iterator[Callable[[], list[Item]]]:
    """One check of models and the comparison of ONNX with torch beside it."""
    with _comparing(compared_with) as compared, _asked(command, question) as answer:
        yield lambda: [*_items(answer()), *compared()]


def _ask(command: str, question: Mapping[str, Any], limits: Limits = _LIMITS) -> dict[str, Any]:
    with _asked(command, question, limits) as answer:
        return answer()


@contextmanager
def _asked(
    command: str, question: Mapping[str, Any], limits: Limits = _LIMITS
) -> Iterator[Callable[[], dict[str, Any]]]:
    """One of the application's checks at work. What is called waits for it; it raises MacdError."""
    with childprocess.asked(f"{BUILTIN.check} {command}", question, limits) as answer:

        def said() -> dict[str, Any]:
            try:
                return unless_failed(answer())
            except EndedError as error:
                raise MacdError(
                    "the models can't be checked",
                    why=f"python -m {BUILTIN.check} {command}: {error}",
                    live="nothing was changed",
                    hint="a damaged model file can do that: invoke health --dir names it; "
                    "make setup installs what it needs",
                ) from error

        yield said


def _items(answer: Mapping[str, Any]) -> list[Item]:
    return [Item(**item) for item in answer["items"]]


# Bars.


def stored_rows(
    directory: Path, symbol: str, tf: str, first: int, last: int, before: int
) -> list[list[float]]:
    """Bars of a directory here: [open_ms, open, high, low, close, volume], oldest first.

    They open from `first` to `last` (epoch ms), and up to `before` bars earlier. Raises MacdError.
    """
    from macd.app.service import replay  # noqa: PLC0415 - loads polars

    return replay.stored_rows(directory, symbol, tf, first, last, before)


def fetch_final(
    exchange: str,
    api_url: str,
    symbols: Sequence[str],
    tf: str,
    since: datetime,
    directory: Path,
    report: Callable[[str], None],
) -> None:
    """Bring the bars that an exchange gives now into `directory`, as a service's feed names them.

    Raises MacdError when it has no such market, or can't be reached.
    """
    from macd.app.market import fetch  # noqa: PLC0415 - loads polars

    fetch.fetch_final(exchange, api_url, symbols, tf, since, directory, report=report)


# Training.


def train_settings(request: Mapping[str, Any]) -> Settings:
    """The settings of a training, checked. Raises UsageError naming every wrong one."""
    from macd.app.train.settings import settings_from  # noqa: PLC0415 - loads polars

    return settings_from(request)


def bars_path(data_dir: Path, symbol: str, tf: str) -> Path:
    """Where the bars of a symbol lie, whether they are there or not."""
    from macd.app.market import bars  # noqa: PLC0415 - loads polars

    return bars.bars_path(data_dir, symbol, tf)


def existing_bars(data_dir: Path, symbols: Sequence[str], tf: str) -> dict[str, Path]:
    """The files of bars by symbol. Raises MacdError naming all that are missing."""
    from macd.app.market import bars  # noqa: PLC0415 - loads polars

    return bars.existing(data_dir, symbols, tf)


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
    from macd.app.market.findings import counted  # noqa: PLC0415
    from macd.app.train.dataset import findings as findings_of  # noqa: PLC0415 - loads polars

    frames = {symbol: read_rows(path) for symbol, path in data.items()}
    by_symbol = findings_of(settings, frames, now)
    findings = list(dict.fromkeys(finding for each in by_symbol.values() for finding in each))
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


def write_signal_table(host: str, log: Path, directory: Path) -> tuple[Path, int, Sequence[Any]]:
    """Write a log of a host as parquet; its path, its rows, and (line, why) of damaged lines.

    Raises OSError as the disk has it.
    """
    from macd.app.service import signal_table  # noqa: PLC0415 - loads polars

    made = signal_table.write(host, log, directory)
    return made.path, made.rows, made.damaged


def write_training_page(run: Path, *, host: str, others: Mapping[str, Path]) -> Path:
    """Write the report of a run into its directory. Raises MacdError when it can't be made.

    others: runs that it is compared with, by what they are ("the previous run"). Where one can't
    be compared the page says why. Of several symbols each gets a page, and the run a page of all.
    """
    from macd.app.pages import several, training  # noqa: PLC0415 - loads polars

    compared: dict[str, Mapping[str, Any]] = {}
    for what, other in others.items():
        try:
            compared[what] = compare_runs(other, run)
        except MacdError as error:
            compared[what] = {"unable": f"{error.what}: {error.why}" if error.why else error.what}
    if not (symbols := symbols_in(run)):
        own = {what: _only_symbol(made) for what, made in compared.items()}
        return training.write(run, host=host, compared=own)
    for name in symbols:
        of_it = {what: made.get("symbols", {}).get(name) for what, made in compared.items()}
        given = {what: made for what, made in of_it.items() if made}
        training.write(FILES.of_symbol(run, name), host=host, compared=given)
    return several.write(run, host=host, compared=compared)


def _only_symbol(made: Mapping[str, Any]) -> Mapping[str, Any]:
    """A comparison of a run of one symbol with one of several: the symbol that both have."""
    return next(iter(made["symbols"].values())) if "symbols" in made else made
