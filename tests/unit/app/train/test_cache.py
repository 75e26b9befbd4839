"""The cache: same inputs found again, any change not, and a damaged entry never believed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import macd
from macd.app.train.cache import Cache, Entry, code_digest, key_of


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path)


def _entry() -> Entry:
    return Entry(
        {"p": np.arange(6, dtype=np.float32).reshape(2, 3), "rows": np.array([4, 5])},
        {"a.txt": b"trees", "b.pt": bytes(range(256))},
        {"seconds": 1.5, "history": [{"epoch": 1}]},
    )


def test_an_entry_comes_back_as_it_went(cache: Cache) -> None:
    cache.put("k" * 64, _entry())
    entry = cache.get("k" * 64)
    assert entry is not None
    assert entry.files == _entry().files
    assert entry.facts == _entry().facts
    for name, array in _entry().arrays.items():
        assert entry.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(entry.arrays[name], array)


@pytest.mark.parametrize("where", [0, 10, 40, -1])
def test_a_flipped_byte_anywhere_drops_the_entry(cache: Cache, where: int) -> None:
    cache.put("k" * 64, _entry())
    raw = bytearray(cache.path("k" * 64).read_bytes())
    raw[where] ^= 1
    cache.path("k" * 64).write_bytes(raw)
    assert cache.get("k" * 64) is None
    assert not cache.path("k" * 64).exists()


@pytest.mark.parametrize("length", [0, 5, 39, 200])
def test_a_torn_entry_is_dropped(cache: Cache, length: int) -> None:
    cache.put("k" * 64, _entry())
    path = cache.path("k" * 64)
    path.write_bytes(path.read_bytes()[:length])
    assert cache.get("k" * 64) is None


def test_it_knows_of_which_families_it_holds_fits(cache: Cache) -> None:
    assert not cache.holds("lstm")
    cache.put("lstm-" + "k" * 64, _entry())
    assert cache.holds("lstm")
    assert not cache.holds("lgbm")


def test_storing_a_fit_removes_its_checkpoint(cache: Cache) -> None:
    cache.checkpoint("k" * 64).write_bytes(b"epoch 3")
    cache.put("k" * 64, _entry())
    assert not cache.checkpoint("k" * 64).exists()


def test_every_input_changes_the_key() -> None:
    base = {"params": {"epochs": 4}, "seed": 7, "X": np.zeros((3, 2), np.float32)}
    changes = [
        {"params": {"epochs": 5}},
        {"seed": 8},
        {"X": np.ones((3, 2), np.float32)},
        {"X": np.zeros((2, 3), np.float32)},
        {"X": np.zeros((3, 2), np.float64)},
        {"more": 1},
    ]
    keys = {key_of(base), *(key_of({**base, **change}) for change in changes)}
    assert len(keys) == len(changes) + 1
    assert key_of(dict(reversed(base.items()))) == key_of(base)


def test_code_counts_with_what_it_imports_but_comments_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = tmp_path / "scratch"
    room.mkdir()
    (room / "__init__.py").write_text("")
    (room / "a.py").write_text("from macd.scratch import b\n")
    (room / "b.py").write_text("from macd.scratch.c import rate\n")
    (room / "c.py").write_text("rate = 0.03\n")
    monkeypatch.setattr(macd, "__path__", [*macd.__path__, str(tmp_path)])
    before = code_digest(["macd.scratch.a"])
    (room / "c.py").write_text("# slower is better\nrate   = 0.03\n")
    assert code_digest(["macd.scratch.a"]) == before
    (room / "c.py").write_text("rate = 0.04\n")
    assert code_digest(["macd.scratch.a"]) != before


def test_prune_keeps_the_newest(cache: Cache) -> None:
    for i, key in enumerate(("a" * 64, "b" * 64, "c" * 64)):
        cache.put(key, _entry())
        os.utime(cache.path(key), (i, i))
    size = cache.path("a" * 64).stat().st_size
    assert cache.prune(2 * size) == 1
    assert cache.get("a" * 64) is None
    assert cache.get("b" * 64) is not None  # used now, so c is the one longest unused
    assert cache.prune(size) == 1
    assert cache.get("c" * 64) is None
    assert cache.get("b" * 64) is not None
