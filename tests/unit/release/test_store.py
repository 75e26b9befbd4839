"""Finding releases by id, serials that only go up, and wheels that are found years later."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from macd.errors import MacdError, UsageError
from macd.host.store.manifest import File, Manifest, release_id, render
from macd.release import lock as locks
from macd.release.lock import Lock, Wheel
from macd.release.store import BUILDING, Store

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
LOCK = Lock("3.11", "linux-x86_64-glibc-2.36", (Wheel("pip", "1", "pip-1.whl", 3, "a" * 64),))


def put(
    store: Store, serial: int, *, env: str = "prod", app: str = "macd-analysis", minute: int = 0
) -> str:
    created = NOW.replace(minute=minute)
    manifest = Manifest(
        app=app,
        env=env,
        serial=serial,
        created=created,
        expires=created.replace(year=2030),
        files=(File("lock.json", len(LOCK.raw), LOCK.sha256),),
        lock=LOCK.sha256,
    )
    raw = render(manifest)
    directory = store.root / release_id(raw)
    directory.mkdir(parents=True)
    (directory / "manifest.json").write_bytes(raw)
    (directory / "manifest.json.sig").write_bytes(b"signature")
    (directory / "lock.json").write_bytes(LOCK.raw)
    return directory.name


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "releases")


def test_only_whole_releases_are_listed(store: Store) -> None:
    assert store.ids() == []
    known = put(store, 1)
    for name in (f"{BUILDING}x", "wheels", "20260301T120000Z-zzzzzzzz", "..x", ".lock"):
        (store.root / name).mkdir()
    assert store.ids() == [known]


def test_a_release_is_found_by_its_id_or_how_it_begins(store: Store) -> None:
    first, second = put(store, 1, minute=1), put(store, 2, minute=2)
    assert store.load(first).id == first
    assert store.load(second[:15]).manifest.serial == 2
    with pytest.raises(UsageError, match="several"):
        store.load("2026")
    for named in ("1999", "", "../" + first):
        with pytest.raises(UsageError, match="no release"):
            store.load(named)


def test_the_newest_is_by_serial_and_env_not_by_name(store: Store) -> None:
    put(store, 5, minute=9)
    later = put(store, 9, minute=1)
    put(store, 50, env="staging", minute=3)
    put(store, 60, app="theirs", minute=4)
    assert store.newest("prod", "macd-analysis").id == later
    assert store.newest("prod", "theirs").manifest.serial == 60
    with pytest.raises(UsageError, match="lab"):
        store.newest("lab", "macd-analysis")
    with pytest.raises(UsageError, match="of another application: macd-analysis, theirs"):
        store.newest("prod", "ours")


def test_serials_go_up_and_are_at_least_the_time(store: Store) -> None:
    assert store.next_serial(NOW) == int(NOW.timestamp())
    put(store, int(NOW.timestamp()) + 100)
    assert store.next_serial(NOW) == int(NOW.timestamp()) + 101
    put(store, 3, minute=1)
    assert store.next_serial(NOW) == int(NOW.timestamp()) + 101


def test_a_manifest_that_is_not_the_one_of_its_name_is_refused(store: Store) -> None:
    first, second = put(store, 1, minute=1), put(store, 2, minute=2)
    shutil.copy(store.root / first / "manifest.json", store.root / second)
    with pytest.raises(MacdError, match="can't be read"):
        store.load(second)
    assert [one.id for one in store.readable()] == [first]


def test_a_changed_lock_is_told(store: Store) -> None:
    one = store.load(put(store, 1))
    assert one.lock == LOCK
    (one.directory / "lock.json").write_bytes(LOCK.raw.replace(b"3.11", b"3.12"))
    with pytest.raises(MacdError, match="not the one that was signed"):
        _ = store.load(one.id).lock


def test_wheels_are_kept_by_hash_and_missed_by_name(store: Store, tmp_path: Path) -> None:
    (tmp_path / "pip-1.whl").write_bytes(b"pip")
    store.keep_wheels(LOCK, [tmp_path / "pip-1.whl"])
    store.keep_wheels(LOCK, [])  # already here: its source is not needed
    (wheel,) = LOCK.wheels
    path = store.wheel_path(wheel)
    assert path.read_bytes() == b"pip"
    path.write_bytes(b"pi")
    with pytest.raises(MacdError, match=r"pip-1\.whl"):
        store.wheel_path(wheel)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{}",
        LOCK.raw.rstrip(),
        LOCK.raw.replace(b"pip-1.whl", b"../pip.whl"),
        LOCK.raw.replace(b'"size":3', b'"size":-3'),
        LOCK.raw.replace(b'"size":3', b'"size":true'),
        LOCK.raw.replace(b'"name":"pip"', b'"name":""'),
        LOCK.raw.replace(b'"name":"pip",', b'"name":"pip","url":"http://x",'),
        LOCK.raw.replace(b"a" * 64, b"A" * 64),
    ],
)
def test_a_lock_is_read_strictly(raw: bytes) -> None:
    with pytest.raises(MacdError, match="lock of this release"):
        locks.parse(raw)


def test_a_lock_reads_back_as_it_was_written() -> None:
    both = Lock("3.11", "p", (Wheel("b", "2", "b-2.whl", 1, "b" * 64), *LOCK.wheels))
    assert locks.parse(both.raw).raw == both.raw
    assert both.versions == {"b": "2"}
    turned = Lock("3.11", "p", tuple(reversed(both.wheels)))
    assert turned.sha256 == both.sha256
