"""Small signed releases in a project's releases/, whose service is real HTTP in pure stdlib."""

from __future__ import annotations

import compileall
import ensurepip
import hashlib
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import Any

from macd.host.store.manifest import File, Manifest, release_id, render
from macd.inventory import Inventory
from macd.release.lock import Lock, Wheel
from macd.release.signing import sign
from macd.release.store import Store
from tests.support import several_symbols
from tests.support.deployed_app import prepared
from tests.support.local_host import EMPTY_LOCK, SERVICE
from tests.support.signed_files import make_key

_SETTINGS = (  # of an instance a socket of its own
    "json.load(open(root + '/service.json'))['endpoint']"
    ".removeprefix('unix:').removesuffix('.sock')"
    " + ('-' + sys.argv[sys.argv.index('--symbol') + 1] if '--symbol' in sys.argv else '')"
    " + '.sock'"
)


def make_keys(inventory: Inventory) -> None:
    """The signing key and the allowed_signers file that the inventory names, if missing."""
    key, signers = inventory.release.sign_key, inventory.release.allowed_signers
    assert key is not None
    assert signers is not None
    if not key.exists():
        key.parent.mkdir(parents=True, exist_ok=True)
        make_key(key.parent, key.name)
    if signers.exists():
        return
    public = key.with_suffix(".pub").read_text().strip()
    who = inventory.release.identity
    signers.write_text(f'{who} namespaces="release-manifest@macd" {public}\n')


def locked(inventory: Inventory, version: str, name: str = "tiny", code: str = "") -> bytes:
    """lock.json for pip and a small package; their wheels are kept beside the releases."""
    with tempfile.TemporaryDirectory() as directory:
        tiny = Path(directory, f"{name}-{version}-py3-none-any.whl")
        info = f"{name}-{version}.dist-info"
        members = {
            f"{name}.py": f"__version__ = {version!r}\n{code}",
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        recorded = [*members, f"{info}/RECORD"]
        members[f"{info}/RECORD"] = "".join(f"{one},,\n" for one in recorded)
        with zipfile.ZipFile(tiny, "w") as wheel:
            for name, text in members.items():
                wheel.writestr(zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0)), text)
        pip = compiled_pip()
        wheels = tuple(
            Wheel(
                path.name.split("-")[0],
                path.name.split("-")[1],
                path.name,
                path.stat().st_size,
                hashlib.sha256(path.read_bytes()).hexdigest(),
            )
            for path in (pip, tiny)
        )
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        lock = Lock(python, "any", wheels)
        Store(inventory.root / "releases").keep_wheels(lock, [pip, tiny])
    return lock.raw


def compiled_pip() -> Path:
    """The wheel of this Python's pip, with its code compiled.

    It is run out of its wheel, and compiling it took seconds of each runtime. Made once a machine.
    """
    wheel = next((Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl"))
    directory = Path(tempfile.gettempdir()) / f"macd-pip-{os.getuid()}"
    kept = directory / str(sys.implementation.cache_tag) / wheel.name
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as made:
            shutil.unpack_archive(wheel, Path(made) / "in", "zip")
            compileall.compile_dir(
                Path(made) / "in",
                quiet=2,
                stripdir=made,
                legacy=True,
                invalidation_mode=PycInvalidationMode.UNCHECKED_HASH,
            )
            Path(shutil.make_archive(f"{made}/out", "zip", Path(made) / "in")).rename(kept)
    return kept


def make_real(
    inventory: Inventory,
    serial: int,
    change: Callable[[Path], None] = lambda _: None,
    package: str = "",
    **details: Any,
) -> str:
    """A release with the shared tiny training's models, served by this very code.

    Its runtime has no packages, or an empty one called `package`: serve.py goes on with the Python
    that runs the tests. change: is given a copy of the models' directory before.
    """
    with tempfile.TemporaryDirectory() as copied:
        models = shutil.copytree(prepared(), Path(copied) / "models")
        change(models)
        return _real(inventory, serial, models, details, package)


def make_several(
    inventory: Inventory,
    serial: int,
    symbols: Sequence[str] = several_symbols.SYMBOLS,
    *,
    patched: str = "",
    first: str = "",
    **details: Any,
) -> str:
    """The same of several symbols: see several_symbols.py.

    patched: code that the service's process runs first, to change what it does. first: as of
    `make`, before that.
    """
    known = {**several_symbols.details_of(symbols), **details}
    models = several_symbols.trees(symbols)
    return _real(inventory, serial, models, known, patched=patched, first=first)


def _real(
    inventory: Inventory,
    serial: int,
    models: Path,
    details: dict[str, Any],
    package: str = "",
    *,
    patched: str = "",
    first: str = "",
) -> str:
    python = sys.executable
    code = f"{patched}\nimport runpy\nrunpy.run_module('macd.app.service', None, '__main__', True)"
    words = ["-c", code] if patched else ["-m", "macd.app.service"]
    first += f"\nimport os, sys\nos.execv({python!r}, [{python!r}, *{words!r}, *sys.argv[1:]])\n"
    files = {
        path.relative_to(models).as_posix(): path.read_bytes()
        for path in models.rglob("*")
        if path.is_file()
    }
    known = {"tf": "1h", "symbol": "BTCUSD", "replay": 1}
    known |= details
    if not package:
        return make(inventory, serial, more=files, first=first, details=known)
    return make(
        inventory, serial, more=files, first=first, details=known, package="1", name=package
    )


def make(
    inventory: Inventory,
    serial: int,
    variant: str = "good",
    *,
    extra: bytes = b"",
    more: Mapping[str, bytes] | None = None,
    package: str = "",
    name: str = "tiny",
    module: str = "",
    first: str = "",
    details: Mapping[str, Any] | None = None,
) -> str:
    """Put a signed release into releases/; returns its id. Variants: see local_host.py.

    With `package` its runtime needs version `package` of a package called `name` (and pip), whose
    code is `module`. `first` is run before the service's own code. `details` are the manifest's.
    """
    lock = locked(inventory, package, name, module) if package else EMPTY_LOCK
    code = SERVICE.format(variant=variant, endpoint="ENDPOINT").replace("'ENDPOINT'", _SETTINGS)
    files = {
        "app/serve.py": (first + code).encode(),
        "lock.json": lock,
        "data/ml_models/model.txt": f"model {serial}".encode() * 40 + extra,
        "data/ml_models/shared.txt": b"the same in every release\n" * 100,
        **(more or {}),
    }
    about = {"variant": variant, "run": f"run-{serial}", "data_digest": "d" * 64}
    return put(inventory, serial, files, {**about, **(details or {})})


def put(
    inventory: Inventory,
    serial: int,
    files: Mapping[str, bytes],
    details: Mapping[str, Any],
    app: str = "macd-analysis",
) -> str:
    """Sign these files, lock.json among them, as a release in releases/; returns its id."""
    created = datetime(2026, 3, 1, tzinfo=UTC) + timedelta(minutes=serial)
    manifest = Manifest(
        app=app,
        env="prod",
        serial=serial,
        created=created,
        expires=datetime(2100, 1, 1, tzinfo=UTC),
        files=tuple(
            File(path, len(data), hashlib.sha256(data).hexdigest())
            for path, data in sorted(files.items())
        ),
        lock=hashlib.sha256(files["lock.json"]).hexdigest(),
        details=dict(details),
    )
    raw = render(manifest)
    key = inventory.release.sign_key
    assert key is not None
    directory = inventory.root / "releases" / release_id(raw)
    for path, data in files.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(data)
    (directory / "manifest.json").write_bytes(raw)
    (directory / "manifest.json.sig").write_bytes(sign(raw, key=key))
    return directory.name
