"""`invoke health`: every model of a release, run or folder really loaded and run, a line each."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from macd.cli.verb import emit, verb
from macd.errors import ExitCode, MacdError, UsageError
from macd.symbols import symbol_name

if TYPE_CHECKING:
    from macd.checklist import Item
    from macd.inventory import Inventory


@verb(
    interrupted="nothing was changed\n  do: invoke health again",
    help={
        "release": "id of the release to check (default: the newest for the environment)",
        "env": "check the newest release of this environment (default: prod)",
        "run": "check a training run instead: id below runs/, or a directory",
        "dir": "check a folder of models trained elsewhere, such as data/ml_models",
        "bundle": "check an archive of such a folder: macd_models_20260301.tar.gz, or a .zip",
    },
)
def health(
    _: object,
    release: str = "",
    run: str = "",
    dir: str = "",
    bundle: str = "",
    env: str = "prod",
    inventory: str = "",
    json: bool = False,
) -> ExitCode | None:
    """Load and run every model, compare golden predictions; exit 1 if an item fails."""
    _one_of(release=release, run=run, dir=dir, bundle=bundle)
    if dir or bundle:
        name, items = _of_folder(dir) if dir else _of_bundle(bundle)
    else:
        from macd.inventory import load

        inv = load(inventory)
        name, items = _of_run(inv, run) if run else _of_release(inv, release, env)
    failed = sum(not item.ok for item in items)
    if json:
        emit({"checked": name, "ok": not failed, "items": [asdict(item) for item in items]})
    else:
        print(f"health of {name}")
        for item in items:
            print(item.line())
        print(_summary(items))
    return ExitCode.FAILED if failed else None


def _summary(items: list[Item]) -> str:
    failed = sum(not item.ok for item in items)
    if failed:
        return f"{failed} of {len(items)} items failed"
    undone = sum(not item.done for item in items)
    if undone:
        return f"{len(items) - undone} checks passed, {undone} could not be made here"
    return f"all {len(items)} checks passed"


def _one_of(**options: str) -> None:
    given = [f"--{name}" for name, text in options.items() if text]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} name different models", hint="give one of them")


def _of_folder(named: str) -> tuple[str, list[Item]]:
    from macd import application

    top = Path(named)
    if not top.is_dir():
        hint = f"invoke health --bundle {named} checks an archive" if top.is_file() else ""
        raise UsageError(f"--dir {named}: there is no such folder", hint=hint)
    return named, application.check_folder(top)


def _of_bundle(named: str) -> tuple[str, list[Item]]:
    """Unpacked into a temporary folder; an archive that can't be unpacked is its one item."""
    from macd import application
    from macd.checklist import Item
    from macd.release import unpacking

    archive = Path(named)
    if not archive.is_file():
        raise UsageError(f"--bundle {named}: there is no such file")
    with TemporaryDirectory(prefix="macd-models-") as place:
        try:
            unpacking.unpack(archive, Path(place))
        except unpacking.ArchiveError as error:
            cause = "it was damaged on its way, or made to do harm; nothing of it was read"
            options = ""
            if isinstance(error, unpacking.LinkError):
                cause = "tar packs links as links; nothing of it was read"
                options = " --dereference --hard-dereference"
            remedy = f"make it again: tar -czf macd_models.tar.gz{options} -C data ml_models"
            return named, [Item("bundle", False, str(error), cause, remedy)]
        return named, application.check_folder(Path(place))


def _of_release(inventory: Inventory, named: str, env: str) -> tuple[str, list[Item]]:
    from macd import application
    from macd.host.own import SOURCE
    from macd.release.store import Store
    from macd.release.wheelhouse import proved_with

    store = Store(inventory.root / "releases")
    if not named and not store.ids():
        raise UsageError(
            f"no releases yet in {store.root}",
            hint="invoke release makes one; invoke health --run ID checks a training",
        )
    release = store.load(named) if named else store.newest(env, inventory.release.app)
    own = release.manifest.details.get("own")
    if own:
        tree, check = release.directory / SOURCE, str(own.get("check", ""))
        items = application.check_own(tree, check=check, lock=release.lock.versions)
        return release.id, items
    tf = str(release.manifest.details.get("tf", "1h"))
    versions = proved_with(release.lock, inventory.root / "constraints.txt")
    symbol = symbol_name(inventory.service.symbol) if inventory.service.symbol else ""
    several = release.manifest.serves if release.manifest.details.get("symbols") else ()
    items = application.check_release(
        release.directory, tf=tf, lock=versions, symbol=symbol, symbols=several
    )
    return release.id, items


def _of_run(inventory: Inventory, named: str) -> tuple[str, list[Item]]:
    """A run has no golden predictions yet; its models are run on the bars here."""
    from macd import application
    from macd.run_directory import FILES, bars_directory

    below = inventory.root / "runs" / named
    run = below if below.is_dir() else Path(named)
    if not (run / FILES.settings).is_file():
        raise UsageError(f"there is no run at {run}", hint="invoke train makes one")
    if _is_own(run):
        check = inventory.app.check if inventory.app else ""
        return f"run {run.name}", application.check_own(run / FILES.artefacts, check=check)
    bars = bars_directory(run, inventory.train.data_dir)
    return f"run {run.name}", application.check_run(run, bars)


def _is_own(run: Path) -> bool:
    """Whether a training is one of the team's own application; settings that are damaged say no."""
    from macd.run_directory import FILES, read_json

    try:
        settings = read_json(run / FILES.settings, {})
    except MacdError:  # the check reports it
        return False
    return isinstance(settings, dict) and bool(settings.get("own"))
