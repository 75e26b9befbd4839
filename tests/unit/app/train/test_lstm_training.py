"""The training loop through the LSTM: determinism, resume, memory, NaN, and what a fit may see."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from macd.app.train import lstm
from macd.app.train.fitdata import FitData
from macd.app.train.metrics import auc_by_head
from macd.app.train.nets import Loop
from macd.errors import MacdError
from macd.heads import GUIDE, head_names

pytestmark = pytest.mark.slow

LOOP = Loop(epochs=3, batch=64, lr=3e-3, weight_decay=0.01)
TINY = lstm.Params(hidden=8, layers=1, projection=6, dropout=0.2, loop=LOOP)
N, F = 400, 5


def world(seed: int = 0, **changes: Any) -> FitData:
    """Random features of which the first decides the label, most of the time."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(N, F)).astype(np.float32)
    y = (rng.random((N, 3)) < 1 / (1 + np.exp(-3 * X[:, :1]))).astype(np.float32)
    X[:20, 2] = np.nan
    y[::9, 1] = np.nan
    return dataclasses.replace(FitData(X, np.arange(300), y), **changes)


def weights(model: lstm.Model) -> list[np.ndarray]:
    return [value.numpy() for value in model.net.state_dict().values()]


def same(a: lstm.Model, b: lstm.Model) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(weights(a), weights(b), strict=True))


class Killed(Exception):
    """Stands for SIGKILL right after an epoch's checkpoint was written."""


def killed_after(epoch: int):
    """A report that dies when the epoch AFTER `epoch` is told: that checkpoint isn't written."""

    def report(event: dict[str, Any]) -> None:
        if event["event"] == "epoch" and event["epoch"] == epoch + 1:
            raise Killed

    return report


def test_same_seed_same_numbers_other_seed_others() -> None:
    one, two = (lstm.fit(world(), TINY, seed=3) for _ in range(2))
    assert same(one, two)
    assert not same(one, lstm.fit(world(), TINY, seed=4))


def test_numbers_do_not_depend_on_threads_or_on_other_users_of_the_random_state() -> None:
    one = lstm.fit(world(), TINY, seed=3)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.manual_seed(99)
    drawn = torch.random.get_rng_state()
    try:
        two = lstm.fit(world(), TINY, seed=3)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert same(one, two)
    assert torch.equal(torch.random.get_rng_state(), drawn)


def test_learns_what_is_there() -> None:
    data = world()
    longer = dataclasses.replace(LOOP, epochs=40, lr=1e-2)
    model = lstm.fit(data, dataclasses.replace(TINY, loop=longer), seed=1)
    rows = np.arange(320, N)
    aucs = auc_by_head(data.y[rows], lstm.predict(model, data.X, rows), head_names(GUIDE))
    assert min(aucs.values()) > 0.75


def test_uses_the_bar_it_predicts_from() -> None:
    data = world()
    model = lstm.fit(data, TINY, seed=1)
    changed = data.X.copy()
    changed[200, 0] += 2.0
    rows = np.array([199, 200, 205, 248])
    moved = lstm.predict(model, changed, rows) != lstm.predict(model, data.X, rows)
    assert moved.any(axis=1).tolist() == [False, True, True, False]


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_resumed_after_a_kill_gives_the_numbers_of_an_unbroken_run(
    epoch: int, tmp_path: Path
) -> None:
    whole = lstm.fit(world(), TINY, seed=3)
    point = tmp_path / "lstm.resume"
    with pytest.raises(Killed):
        lstm.fit(world(), TINY, seed=3, checkpoint=point, report=killed_after(epoch))
    events: list[dict[str, Any]] = []
    again = lstm.fit(world(), TINY, seed=3, checkpoint=point, report=events.append)
    assert same(whole, again)
    assert again.loop["history"] == whole.loop["history"]
    done = [e["epoch"] for e in events if e["event"] == "epoch"]
    assert done == list(range(epoch + 1, 4))  # nothing was done twice
    assert [e["epoch"] for e in events if e["event"] == "resumed"] == ([epoch] if epoch else [])


def test_a_finished_checkpoint_is_the_result(tmp_path: Path) -> None:
    point = tmp_path / "p"
    first = lstm.fit(world(), TINY, seed=3, checkpoint=point)
    events: list[dict[str, Any]] = []
    assert same(first, lstm.fit(world(), TINY, seed=3, checkpoint=point, report=events.append))
    assert [e["event"] for e in events] == ["resumed"]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_checkpoint_is_reported_and_not_used(damage: str, tmp_path: Path) -> None:
    point = tmp_path / "p"
    first = lstm.fit(world(), TINY, seed=3, checkpoint=point)
    data = bytearray(point.read_bytes())
    data[len(data) // 2] ^= 1
    point.write_bytes({"cut": data[:-100], "flip": bytes(data), "empty": b""}[damage])
    events: list[dict[str, Any]] = []
    assert same(first, lstm.fit(world(), TINY, seed=3, checkpoint=point, report=events.append))
    assert events[0]["event"] == "checkpoint-ignored"
    assert "damaged" in events[0]["why"]


@pytest.mark.parametrize("change", ["seed", "data", "params"])
def test_a_checkpoint_of_another_fit_is_not_used(change: str, tmp_path: Path) -> None:
    point = tmp_path / "p"
    lstm.fit(world(), TINY, seed=3, checkpoint=point)
    data = world(seed=1) if change == "data" else world()
    params = dataclasses.replace(TINY, dropout=0.1) if change == "params" else TINY
    seed = 4 if change == "seed" else 3
    events: list[dict[str, Any]] = []
    got = lstm.fit(data, params, seed=seed, checkpoint=point, report=events.append)
    assert events[0]["event"] == "checkpoint-ignored"
    assert same(got, lstm.fit(data, params, seed=seed))


def limited(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """A device that holds `most` windows at a time."""
    real = lstm.LstmNet.body

    def body(self: lstm.LstmNet, scaled: torch.Tensor) -> torch.Tensor:
        if self.training and len(scaled) > most:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried {len(scaled)} windows")
        return real(self, scaled)

    monkeypatch.setattr(lstm.LstmNet, "body", body)


def test_out_of_memory_halves_the_batch_says_so_and_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calm = dataclasses.replace(TINY, dropout=0.0)  # dropout draws differ with the split
    whole = lstm.fit(world(), calm, seed=3)
    limited(monkeypatch, 20)
    events: list[dict[str, Any]] = []
    model = lstm.fit(world(), calm, seed=3, report=events.append)
    assert [e["batch"] for e in events if e["event"] == "oom"] == [32, 16]
    assert model.loop["batch_that_fit"] == 16
    assert model.loop["epoch"] == 3
    # The optimizer still saw whole batches: same result but for the order of sums.
    for a, b in zip(weights(whole), weights(model), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


def test_out_of_memory_for_a_single_window_is_an_error_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limited(monkeypatch, 0)
    with pytest.raises(MacdError, match="memory for even one window") as caught:
        lstm.fit(world(), TINY, seed=3)
    assert "nvidia-smi" in caught.value.hint


def test_a_loss_that_is_no_number_is_an_error_and_leaves_no_checkpoint(tmp_path: Path) -> None:
    wild = dataclasses.replace(TINY, loop=dataclasses.replace(LOOP, lr=1e30))
    point = tmp_path / "p"
    with pytest.raises(MacdError, match=r"loss became .* in epoch 1"):
        lstm.fit(world(), wild, seed=3, checkpoint=point)
    assert not point.exists()


def test_a_fit_looks_at_nothing_after_its_last_row() -> None:
    data = world()
    later_X, later_y = data.X.copy(), data.y.copy()
    later_X[300:], later_y[300:] = 1e6, np.nan
    changed = dataclasses.replace(data, X=later_X, y=later_y)
    assert same(lstm.fit(data, TINY, seed=3), lstm.fit(changed, TINY, seed=3))
    assert data.digest() == changed.digest()


def test_the_scaler_learns_from_the_training_rows_alone() -> None:
    data = world(rows=np.arange(100, 200))
    moved = data.X.copy()
    moved[200:] += 100.0
    moved[:100] += 100.0
    center = lstm.fit(data, TINY, seed=3).net.scale.center
    assert torch.equal(
        center, lstm.fit(dataclasses.replace(data, X=moved), TINY, seed=3).net.scale.center
    )


def test_early_stopping_keeps_the_best_epoch_of_the_inner_slice() -> None:
    noise = world(stop_rows=np.arange(340, N))
    rng = np.random.default_rng(5)
    shuffled = (rng.random((N, 3)) < 0.5).astype(np.float32)
    loop = dataclasses.replace(LOOP, epochs=40, patience=3, lr=1e-2)
    model = lstm.fit(
        dataclasses.replace(noise, y=shuffled), dataclasses.replace(TINY, loop=loop), seed=3
    )
    history = model.loop["history"]
    losses = [e["stop_loss"] for e in history]
    assert len(history) < 40
    assert model.loop["best_epoch"] == int(np.argmin(losses)) + 1 == len(history) - 3
    assert {e["on"] for e in history} == {"inner slice"}
    stop = np.arange(340, N)
    p, y = lstm.predict(model, noise.X, stop).astype(np.float64), shuffled[stop]
    kept = -np.mean(y * np.log(p) + (1 - y) * np.log1p(-p))
    assert kept == pytest.approx(min(losses), abs=1e-5)  # not the last epoch's weights


def test_events_tell_epoch_loss_and_auc_of_each_head() -> None:
    events: list[dict[str, Any]] = []
    lstm.fit(world(), TINY, seed=3, report=events.append)
    assert [(e["epoch"], e["epochs"]) for e in events] == [(1, 3), (2, 3), (3, 3)]
    assert {*events[0]["auc"]} == {"5h", "12h", "24h"}
    assert events[0]["loss"] > events[-1]["loss"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"rows": np.arange(30)}, "48 bars"),
        ({"y": np.full((N, 3), np.nan, np.float32)}, "label"),
    ],
)
def test_nothing_to_learn_from_is_an_error(change: dict[str, Any], why: str) -> None:
    with pytest.raises(MacdError) as caught:
        lstm.fit(world(**change), TINY, seed=3)
    assert why in caught.value.why
