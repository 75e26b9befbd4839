"""The LSTM as a value: scaling, prediction, files."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from macd.app.train import cards, lstm, nets
from macd.app.train.fitdata import FitData
from macd.app.train.modelfiles import write_whole
from macd.app.train.nets import Loop
from macd.errors import MacdError

TINY = lstm.Params(
    hidden=8,
    layers=1,
    projection=6,
    dropout=0.1,
    loop=Loop(epochs=1, batch=64, lr=1e-3, weight_decay=0.0),
)
NAMES = ("body", "macd", "rsi_14")


@pytest.fixture(scope="module")
def data() -> FitData:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(3000, 3)).astype(np.float32)
    y = (rng.random((3000, 3)) < 0.5).astype(np.float32)
    return FitData(X, np.arange(1000), y, features=NAMES)


@pytest.fixture(scope="module")
def model(data: FitData) -> lstm.Model:
    return lstm.fit(data, TINY, seed=1)


def test_scaling_is_median_and_iqr_clipped_and_gaps_become_zero() -> None:
    rng = np.random.default_rng(1)
    column = rng.normal(5.0, 2.0, 10_001)
    flag = (rng.random(10_001) < 0.05).astype(float)  # no IQR: standard deviation instead
    X = np.column_stack([column, flag, np.full(10_001, 7.0), np.full(10_001, np.nan)])
    X[:500, 0] = np.nan
    scale = nets.RobustScale(4)
    scale.fit(X.astype(np.float32))
    assert scale.center[0] == pytest.approx(np.nanmedian(X[:, 0]), abs=1e-5)
    assert scale.spread[0] == pytest.approx(2.0, rel=0.05)
    assert scale.spread[1] == pytest.approx(flag.std(), rel=1e-5)
    seen = scale(torch.tensor([[np.nan] * 4, [1e9, np.inf, 7.0, 0.0], [5, -np.inf, 7.0, 0.0]]))
    assert torch.equal(seen[0], torch.zeros(4))
    assert seen[1].tolist() == [5.0, 5.0, 0.0, 0.0]
    assert seen[2, 1] == -5.0


def test_rows_without_history_are_nan_the_rest_are_probabilities(
    model: lstm.Model, data: FitData
) -> None:
    p = lstm.predict(model, data.X, np.array([0, 46, 47, 2999]))
    assert p.dtype == np.float32
    assert np.isnan(p).all(axis=1).tolist() == [True, True, False, False]
    assert ((p[2:] > 0) & (p[2:] < 1)).all()


def test_prediction_of_a_row_does_not_depend_on_the_batch_it_is_in(
    model: lstm.Model, data: FitData, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.arange(3000)
    sizes: list[int] = []
    hook = model.net.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    whole = lstm.predict(model, data.X, rows)
    hook.remove()
    assert sizes == [2048, 3000 - 47 - 2048]
    np.testing.assert_allclose(whole[[100]], lstm.predict(model, data.X, rows[[100]]), atol=1e-6)


def test_prediction_goes_on_in_smaller_parts_when_memory_is_short(
    model: lstm.Model, data: FitData, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.arange(40, 1_000)
    whole = lstm.predict(model, data.X, rows)
    real, sizes = lstm.LstmNet.forward, []

    def small(self: lstm.LstmNet, raw: torch.Tensor) -> torch.Tensor:
        if len(raw) > 300:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(raw))
        return real(self, raw)

    monkeypatch.setattr(lstm.LstmNet, "forward", small)
    parts = lstm.predict(model, data.X, rows)
    np.testing.assert_allclose(parts, whole, atol=1e-6)
    assert sizes == [256, 256, 256, 1_000 - 47 - 3 * 256]


def test_saved_and_loaded_it_predicts_the_same(
    model: lstm.Model, data: FitData, tmp_path: Path
) -> None:
    written = lstm.save(model, tmp_path, "1h", facts={"best_head": "5h"})
    assert sorted(p.name for p in written) == ["lstm_1h.pt", "lstm_1h_meta.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lstm_1h.pt", "lstm_1h_meta.json"]
    back = lstm.load(tmp_path, "1h")
    rows = np.arange(500, 700)
    assert np.array_equal(lstm.predict(back, data.X, rows), lstm.predict(model, data.X, rows))
    assert (back.params, back.features) == (TINY, NAMES)
    meta = json.loads((tmp_path / "lstm_1h_meta.json").read_bytes())
    assert meta["best_head"] == "5h"
    assert meta["features"] == list(NAMES)
    assert meta["schema_hash"]
    assert (meta["seq_len"], meta["horizons"], meta["seed"]) == (48, [5, 12, 24], 1)
    assert meta["training_digest"] == data.digest()


def test_a_device_that_lowers_precision_is_followed_and_recorded(
    data: FitData, model: lstm.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (model.loop["precision"], model.loop["predict_batch"]) == ("fp32", 2048)
    lowered = cards.Arithmetic("bf16", 4096)
    monkeypatch.setattr(nets.cards, "arithmetic", lambda device, features: lowered)
    other = lstm.fit(data, TINY, seed=1)
    assert (other.loop["precision"], other.loop["predict_batch"]) == ("bf16", 4096)
    pairs = list(zip(model.net.parameters(), other.net.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in pairs)
    for a, b in pairs:  # the same training, but for the rounding
        torch.testing.assert_close(a, b, atol=5e-3, rtol=0)
    sizes: list[int] = []
    hook = other.net.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    lstm.predict(other, data.X, np.arange(3000))
    hook.remove()
    assert sizes == [3000 - 47]


def test_a_file_from_when_nets_could_be_compiled_still_loads(
    model: lstm.Model, data: FitData, tmp_path: Path
) -> None:
    lstm.save(model, tmp_path, "1h")
    path = tmp_path / "lstm_1h.pt"
    state = torch.load(path, weights_only=True)
    state["config"]["params"]["loop"]["compile"] = True
    torch.save(state, path)
    back, rows = lstm.load(tmp_path, "1h"), np.arange(500, 520)
    assert back.params == TINY
    assert np.array_equal(lstm.predict(back, data.X, rows), lstm.predict(model, data.X, rows))


def test_the_pt_file_holds_tensors_and_plain_values_only(model: lstm.Model, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (print, ("run",))

    lstm.save(model, tmp_path, "1h")
    stored = torch.load(tmp_path / "lstm_1h.pt", weights_only=True)
    assert {*stored} == {"format", "weights", "config", "loop"}
    assert "optimizer" not in stored["loop"]
    json.dumps(stored["loop"])  # how it went, in plain values: no tensors
    torch.save({"weights": Evil()}, tmp_path / "lstm_1h.pt")
    with pytest.raises(pickle.UnpicklingError):
        lstm.load(tmp_path, "1h")


def test_full_size_is_the_guides(tmp_path: Path) -> None:
    net = lstm.LstmNet(80, lstm.Params.full())
    assert (net.lstm.hidden_size, net.lstm.num_layers) == (192, 2)
    lstm.save(lstm.Model(net, lstm.Params.full(), (), {}), tmp_path, "1h")
    weights = sum(p.numel() * p.element_size() for p in net.parameters())
    assert weights < (tmp_path / "lstm_1h.pt").stat().st_size < 1.1 * weights


def test_a_write_that_fails_leaves_the_old_file_and_no_scrap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_whole(tmp_path / "f", b"old")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(tmp_path / "f", b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("f", b"old")]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"X": np.zeros((9, 3))}, "float32"),
        ({"y": np.zeros((9, 3), np.float32)}, "y must be"),
        ({"y": np.full((3000, 3), 2.0, np.float32)}, "other than 0, 1"),
        ({"features": ("a",)}, "feature names"),
        ({"rows": np.array([3000])}, "outside"),
        ({"rows": np.array([], np.int64)}, "empty"),
        ({"stop_rows": np.array([5])}, "overlap"),
    ],
)
def test_data_that_do_not_fit_together_are_refused(
    data: FitData, change: dict[str, Any], why: str
) -> None:
    with pytest.raises(MacdError) as caught:
        dataclasses.replace(data, **change)
    assert why in caught.value.why
