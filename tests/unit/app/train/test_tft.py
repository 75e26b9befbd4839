"""The TFT: its parts as in the paper, determinism, resume, and weights that explain it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from macd.app.train import tft
from macd.app.train.fitdata import FitData
from macd.app.train.metrics import auc_by_head
from macd.app.train.nets import Loop
from macd.heads import GUIDE, head_names

pytestmark = pytest.mark.slow

LOOP = Loop(epochs=2, batch=64, lr=5e-3, weight_decay=0.01)
TINY = tft.Params(width=8, attention_heads=2, dropout=0.1, loop=LOOP)


@pytest.fixture(scope="module")
def data() -> FitData:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(900, 6)).astype(np.float32)
    X[:30, 0] = np.nan
    y = (rng.random((900, 3)) < 1 / (1 + np.exp(-3 * X[:, 3:4]))).astype(np.float32)
    return FitData(X, np.arange(700), y, features=tuple("abcdef"))


def same(a: tft.Model, b: tft.Model) -> bool:
    ours, theirs = a.net.state_dict(), b.net.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_full_size_is_about_150k_parameters() -> None:
    net = tft.TftNet(80, tft.Params.full())
    assert 140_000 < sum(p.numel() for p in net.parameters()) < 160_000


def test_learns_and_the_deciding_feature_weighs_most(data: FitData) -> None:
    loop = dataclasses.replace(LOOP, epochs=12, lr=2e-2)
    model = tft.fit(data, dataclasses.replace(TINY, loop=loop), seed=1)
    rows = np.arange(720, 900)
    aucs = auc_by_head(data.y[rows], tft.predict(model, data.X, rows), head_names(GUIDE))
    assert min(aucs.values()) > 0.75
    features, bars = tft.explain(model, data.X, rows)
    assert next(iter(features)) == "d"
    assert next(iter(tft.importance(model))) == "d"
    assert sum(tft.importance(model).values()) == pytest.approx(1.0, abs=1e-5)
    assert sum(features.values()) == pytest.approx(1.0, abs=1e-5)
    assert len(bars) == 48
    assert sum(bars) == pytest.approx(1.0, abs=1e-5)


def test_same_seed_same_numbers_and_a_kill_changes_nothing(data: FitData, tmp_path: Path) -> None:
    whole = tft.fit(data, TINY, seed=1)
    point = tmp_path / "p"

    def killed(event: dict[str, Any]) -> None:
        if event.get("epoch") == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tft.fit(data, TINY, seed=1, checkpoint=point, report=killed)
    assert same(whole, tft.fit(data, TINY, seed=1, checkpoint=point))
    assert not same(whole, tft.fit(data, TINY, seed=2))


def test_saved_and_loaded_it_predicts_the_same(data: FitData, tmp_path: Path) -> None:
    model = tft.fit(data, TINY, seed=1)
    names = [p.name for p in tft.save(model, tmp_path, "1h")]
    assert names == ["tft_1h.pt", "tft_1h_meta.json"]
    back = tft.load(tmp_path, "1h")
    rows = np.arange(40, 300)
    assert np.array_equal(
        tft.predict(back, data.X, rows), tft.predict(model, data.X, rows), equal_nan=True
    )
    assert back.params == TINY
    assert tft.importance(back) == tft.importance(model)


def test_variable_selection_is_the_weighted_sum_of_the_embeddings() -> None:
    torch.manual_seed(0)
    select = tft.VariableSelection(5, 4, 0.0).eval()
    select.level.data.normal_()
    x = torch.randn(2, 3, 5)
    out, weights = select(x)
    embedded = x[..., None] * select.slope + select.level  # (2, 3, 5, 4)
    by_hand = (weights[..., None] * embedded).sum(dim=2) * math.sqrt(5)
    torch.testing.assert_close(out, select.refine(by_hand))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3))


def test_attention_heads_share_their_values() -> None:
    """Equation 16: averaging heads over one value matrix is averaging the heads' weights."""
    torch.manual_seed(0)
    attend = tft.LastBarAttention(8, 2).eval()
    x = torch.randn(3, 6, 8)
    out, weights = attend(x)
    heads = []
    for h in range(2):
        part = slice(4 * h, 4 * h + 4)
        q, k = attend.query(x[:, -1])[:, part], attend.key(x)[..., part]
        heads.append(torch.softmax((k @ q[:, :, None])[..., 0] / 2.0, dim=-1))
    mean = (heads[0] + heads[1]) / 2
    torch.testing.assert_close(weights, mean)
    torch.testing.assert_close(out, attend.out((mean[:, None] @ attend.value(x))[:, 0]))


def test_a_gate_can_shut_out_what_its_block_adds() -> None:
    gate = tft.Gate(4, 4, 0.0).eval()
    gate.unit.bias.data[4:] = -1e9
    x, skip = torch.randn(2, 4), torch.randn(2, 4)
    torch.testing.assert_close(gate(x, skip), gate.norm(skip))
