"""Write constraints.txt, requirements.lock and requirements-cuda.lock anew: `make lock`.

constraints.txt has the versions that are installed in .venv. requirements.lock has them with the
SHA-256 of every file of each release, for all platforms, as pip's index has them.
requirements-cuda.lock has what PyPI's torch needs beside that on Linux (docs/adr/lock.md).

Needs pip-tools, which asks the index as pip does. The options of this script are pip's.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

from piptools.repositories import PyPIRepository

VENV = Path(".venv/bin/python")
# Where a package is needed or made for. `pip freeze` doesn't know that.
MARKERS = {"coincurve": 'python_version < "3.14"', "xgboost-cpu": 'sys_platform == "linux"'}
CUDA = ("cuda-", "nvidia-", "triton")
_HEAD = "# Made by `make lock`. Every file of each release, by its SHA-256.\n"


def main(pip_args: list[str]) -> None:
    if sys.platform != "linux":
        raise SystemExit("make lock needs Linux: what PyPI's torch needs there is resolved by pip")
    frozen = _pip("freeze", "--all", "--exclude-editable", "--exclude", "pip")
    installed = _pins(frozen.replace("+cpu", ""))
    # ===: PyPI's files only, not builds as 2.13.0+cpu.
    cuda = {
        name: version
        for name, version in _needed(f"torch==={installed['torch']}", pip_args).items()
        if name.startswith(CUDA)
    }
    pins = {name: version for name, version in installed.items() if name not in cuda}
    Path("constraints.txt").write_text("".join(f"{n}=={v}\n" for n, v in pins.items()))
    index = PyPIRepository(pip_args, cache_dir=".venv/lock-cache")
    with index.allow_all_wheels():
        Path("requirements.lock").write_text(_HEAD + _locked(index, pins, MARKERS))
        on_linux = dict.fromkeys(cuda, 'sys_platform == "linux"')
        Path("requirements-cuda.lock").write_text(_HEAD + _locked(index, cuda, on_linux))


def _pip(*argv: str) -> str:
    done = subprocess.run([VENV, "-m", "pip", *argv], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def _pins(frozen: str) -> dict[str, str]:
    return dict(line.split("==") for line in frozen.splitlines())


def _needed(wanted: str, pip_args: list[str]) -> dict[str, str]:
    """What pip would install for `wanted`. It may download gigabytes to find out."""
    argv = ("install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-", *pip_args)
    report = json.loads(_pip(*argv, wanted))
    found = [item["metadata"] for item in report["install"]]
    return {item["name"]: item["version"] for item in found}


def _locked(index: PyPIRepository, pins: dict[str, str], markers: dict[str, str]) -> str:
    blocks = []
    for name, version in pins.items():
        marker = f" ; {markers[name]}" if name in markers else ""
        hashes = [f"    --hash=sha256:{digest}" for digest in _hashes(index, name, version)]
        blocks.append(" \\\n".join([f"{name}=={version}{marker}", *hashes]) + "\n")
    return "".join(blocks)


def _hashes(index: PyPIRepository, name: str, version: str) -> list[str]:
    """Of each file of the release, builds for one kind of machine (2.13.0+cpu) among them."""
    links = [
        file.link for file in index.find_all_candidates(name) if file.version.public == version
    ]
    if not links:
        raise SystemExit(f"no file of {name} {version} in pip's index")
    return sorted({_sha256(link) for link in links})


def _sha256(link) -> str:
    if link.hash_name == "sha256":
        return link.hash
    if not link.is_file:
        raise SystemExit(f"the index has no SHA-256 of {link.url_without_fragment}")
    with Path(link.file_path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


main(sys.argv[1:])
