"""`runtime: index` on the embedded lab: a real package index, down, wrong, and no longer needed."""

from __future__ import annotations

import hashlib
import shutil
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from macd.host.failure import HostError
from macd.host.layout import Layout
from macd.host.rpc import blobs
from macd.host.store import runtimes
from macd.lab import LabState
from macd.release import lock
from tests.support import small_releases
from tests.support.lab_project import Project, project

VERSION = "import tiny; print(tiny.__version__)"


@dataclass
class Index:
    """A directory in the layout of the simple API, served on loopback while `up`."""

    directory: Path
    asked: list[str] = field(default_factory=list)
    server: ThreadingHTTPServer | None = None
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/simple"

    def up(self) -> None:
        asked = self.asked

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, format: str, *words: object) -> None:
                asked.append(self.path)

        served = partial(Handler, directory=str(self.directory))
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), served)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def down(self) -> None:
        if self.server:
            self.server.shutdown()
            self.server.server_close()
            self.server = None

    def take(self, bench: Project, version: str) -> Path:
        """Move that wheel of tiny from beside the releases to the index."""
        (found,) = bench.root.glob(f"releases/wheels/*/tiny-{version}-*.whl")
        there = self.directory / "simple" / "tiny"
        there.mkdir(parents=True, exist_ok=True)
        moved = shutil.move(found, there / found.name)
        self.list()
        return Path(moved)

    def list(self) -> None:
        there = self.directory / "simple" / "tiny"
        links = "".join(f'<a href="{one.name}">{one.name}</a>\n' for one in there.glob("tiny-*"))
        (there / "index.html").write_text(f"<!DOCTYPE html><html><body>{links}</body></html>")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    made = Index(tmp_path_factory.mktemp("index"))
    made.up()
    yield made
    made.down()


@pytest.fixture(scope="module")
def bench(
    lab: LabState, index: Index, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Project]:
    made = project(lab, tmp_path_factory.mktemp("indexed") / "p", "index-test")
    inventory = made.root / "inventory" / "lab.yml"
    wanted = "service:\n  runtime: index\n  index_url: ${TEST_INDEX_URL}\n"
    inventory.write_text(inventory.read_text().replace("service:\n", wanted))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TEST_INDEX_URL", index.url)
        made.invoke("provision", "--yes")
        yield made


def test_packages_come_from_the_index_by_hash_and_once(bench: Project, index: Index) -> None:
    release = bench.release(1, package="1.0")
    index.take(bench, "1.0")
    told = bench.json("deploy", "--yes")["outcomes"][0]
    assert told["live"] == release
    assert bench.runtime_says(VERSION) == "1.0"
    wheels = [path for path in index.asked if path.endswith(".whl")]
    assert wheels == ["/simple/tiny/tiny-1.0-py3-none-any.whl"]
    asked = len(index.asked)
    assert bench.json("deploy", "--yes")["outcomes"][0]["result"] == "nothing"
    same_lock = bench.release(2, package="1.0")
    told = bench.json("deploy", "--yes")["outcomes"][0]
    assert told["live"] == same_lock
    assert "build runtime" not in told["plan"]["steps"]
    assert len(index.asked) == asked


@contextmanager
def nothing_changes(bench: Project) -> Iterator[None]:
    """Neither a runtime nor a release is there more or less; the same process serves the same."""

    def there() -> list[object]:
        host = bench.json("status")["hosts"][0]
        kept = [path for name in ("runtimes", "releases") for path in (bench.app / name).iterdir()]
        return [host["live"], host["process"], sorted(kept)]

    before = there()
    yield
    assert there() == before


def refused(bench: Project) -> str:
    told = bench.invoke("deploy", "--yes", code=6)
    assert "Traceback" not in told
    return told


def test_an_index_that_is_down_or_has_other_bytes_is_refused_until_it_is_sound(
    bench: Project, index: Index
) -> None:
    bench.release(3, package="2.0")
    wheel = index.take(bench, "2.0")
    sound = wheel.read_bytes()
    with nothing_changes(bench):
        index.down()
        try:
            told = refused(bench)
        finally:
            index.up()
        assert "the host did not reach its package index" in told
        assert "service.index_url" in told
        wheel.write_bytes(sound.replace(b"'2.0'", b"'6.6'"))
        told = refused(bench)
        assert "the package index has other bytes than the release was made with" in told
        assert "Expected sha256" in told
        assert "tiny-2.0" in told
    wheel.write_bytes(sound)
    bench.invoke("deploy", "--yes")
    assert bench.runtime_says(VERSION) == "2.0"


def test_a_wheel_the_index_lacks_and_a_source_archive_are_refused_and_the_way_back_needs_no_index(
    bench: Project, index: Index
) -> None:
    bench.release(4, package="3.0")
    wheel = index.take(bench, "3.0")
    wheel.rename(index.directory / wheel.name)
    (wheel.parent / "tiny-3.0.tar.gz").write_bytes(b"never unpacked")
    with nothing_changes(bench):
        assert "the package index answered 404 for a wheel" in refused(bench)
        index.list()
        assert "the package index has no wheel of tiny==3.0" in refused(bench)
    assert "/simple/tiny/tiny-3.0.tar.gz" not in index.asked
    index.down()
    try:
        bench.invoke("rollback", "--yes")
    finally:
        index.up()
    assert bench.runtime_says(VERSION) == "1.0"


def test_what_was_installed_is_imported_before_anything_else(
    index: Index, tmp_path: Path, bench: Project
) -> None:
    """A wheel that is the right one, and broken on this host: no runtime is left behind."""
    locked = lock.parse(small_releases.locked(bench.inventory, "5.0"))
    wheel = index.take(bench, "5.0")
    with zipfile.ZipFile(wheel) as sound:
        members = {name: sound.read(name) for name in sound.namelist()}
    with zipfile.ZipFile(wheel, "w") as broken:
        for name, data in {**members, "tiny.py": b"raise ImportError('no libgomp here')\n"}.items():
            broken.writestr(name, data)
    raw = wheel.read_bytes()
    known = {one.name: one for one in locked.wheels}
    tiny = replace(known["tiny"], sha256=hashlib.sha256(raw).hexdigest(), size=len(raw))
    locked = replace(locked, wheels=(known["pip"], tiny))
    (pip,) = bench.root.glob(f"releases/wheels/*/{known['pip'].file}")
    blob = Path(blobs.path_of(str(tmp_path), known["pip"].sha256))
    blob.parent.mkdir(parents=True)
    shutil.copyfile(pip, blob)
    layout = Layout(str(tmp_path))
    with pytest.raises(HostError, match="importing the packages failed") as told:
        runtimes.install(layout, locked.raw, ["tiny"], index=True, index_url=index.url)
    assert "no libgomp here" in told.value.why
    assert list((tmp_path / "runtimes").iterdir()) == []
    assert runtimes.install(layout, locked.raw, [], index=True, index_url=index.url)["built"]
