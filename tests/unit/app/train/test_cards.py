"""What a CUDA card allows, without one: pure rules, and a probe that is asked about stand-ins."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from macd.app.market.splits import Fold
from macd.app.train import cards, lgbm
from macd.app.train.events import Events
from macd.app.train.fits import Inputs, Task, keyed, run_task

GIB = 1 << 30
BYTES = st.integers(GIB, 300 * GIB)
WINDOWS = st.integers(48 * 4, 48 * 4 * 500)


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    yield
    cards._smallest_here.cache_clear()
    cards._all_honour_bf16.cache_clear()


@given(BYTES, BYTES, WINDOWS)
def test_the_batch_grows_with_the_card_and_shrinks_with_the_row(a: int, b: int, row: int) -> None:
    small, large = sorted((a, b))
    batch = cards.prediction_batch(small, row)
    assert batch <= cards.prediction_batch(large, row)
    assert batch >= cards.prediction_batch(small, 2 * row)
    assert batch & (batch - 1) == 0
    assert cards.PREDICT_BATCH <= batch <= cards.MOST_PREDICTED


@given(BYTES, WINDOWS)
def test_fits_that_share_a_card_have_room_for_their_predictions(card: int, row: int) -> None:
    batch = cards.prediction_batch(card, row)
    if batch > cards.PREDICT_BATCH:  # what every fit may take; a card too small halves it
        assert cards.fits_on(card) * batch * row * cards._HELD <= card / 2


def test_common_cards() -> None:
    row = 48 * 82 * 4
    sizes = {gib: (cards.fits_on(gib * GIB), cards.prediction_batch(gib * GIB, row)) for gib in
             (2, 8, 24, 80)}  # fmt: skip
    assert sizes == {2: (1, 2048), 8: (2, 2048), 24: (4, 4096), 80: (4, 16384)}
    # What a driver takes more or less changes no number.
    assert cards.prediction_batch(80 * GIB - (300 << 20), row) == 16384


class Layer(nn.Module):
    """Stands in for a recurrent layer that computes in one type and hands out another."""

    def __init__(self, inputs: int, outputs: int, inside: torch.dtype, out: torch.dtype) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.inside, self.out = inside, out

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        if not torch.is_autocast_enabled("cpu"):
            return torch.tanh(self.linear(x)), None
        with torch.autocast("cpu", enabled=False):
            weight, bias = (p.to(self.inside) for p in (self.linear.weight, self.linear.bias))
            made = torch.tanh(nn.functional.linear(x.to(self.inside), weight, bias))
        return made.to(self.out), None


@pytest.mark.parametrize(
    ("inside", "out", "honoured"),
    [
        (torch.bfloat16, torch.bfloat16, True),
        (torch.float16, torch.float16, False),  # as torch casts for cuDNN's recurrent kernels
        (torch.float16, torch.bfloat16, False),  # shown by its gradients, not by its type
        (torch.float32, torch.float32, False),
    ],
)
def test_bf16_is_taken_only_where_it_is_computed_in(
    inside: torch.dtype, out: torch.dtype, *, honoured: bool
) -> None:
    assert cards.honours_bf16("cpu", lambda i, o: Layer(i, o, inside, out)) is honoured


@pytest.mark.parametrize("error", [RuntimeError, NotImplementedError])
def test_a_kernel_that_refuses_is_a_no(error: type[Exception]) -> None:
    class Refuses(Layer):
        def forward(self, x: Tensor) -> tuple[Tensor, None]:
            if torch.is_autocast_enabled("cpu"):
                raise error('"_thnn_fused_lstm_cell_cuda" not implemented for BFloat16')
            return super().forward(x)

    def make(inputs: int, outputs: int) -> nn.Module:
        return Refuses(inputs, outputs, torch.bfloat16, torch.bfloat16)

    assert not cards.honours_bf16("cpu", make)


def test_a_full_card_is_no_answer_about_bf16() -> None:
    def full(inputs: int, outputs: int) -> nn.Module:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        cards.honours_bf16("cpu", full)


def test_the_probe_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    cards.honours_bf16("cpu")
    assert torch.equal(before, torch.get_rng_state())


def test_a_cpu_is_never_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "honours_bf16", pytest.fail)
    assert cards.arithmetic("cpu", 82) == cards.Arithmetic("fp32", 2048)


@pytest.mark.parametrize(
    ("honest", "precision"), [({"cuda:0", "cuda:1"}, "bf16"), ({"cuda:0"}, "fp32")]
)
def test_unlike_cards_are_treated_as_the_weakest(
    monkeypatch: pytest.MonkeyPatch, honest: set[str], precision: str
) -> None:
    memory = (80 * GIB, 24 * GIB)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda card: SimpleNamespace(total_memory=memory[card])
    )
    monkeypatch.setattr(cards, "honours_bf16", lambda device: device in honest)
    assert cards.arithmetic("cuda:0", 82) == cards.Arithmetic(precision, 4096)
    assert cards.arithmetic("cuda:1", 82) == cards.arithmetic("cuda:0", 82)


def test_fits_are_kept_apart_by_how_their_numbers_came_about(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 3)).astype(np.float32)
    y = (X > 0).astype(np.float32)
    fold = Fold(0, np.arange(48, 200), np.arange(300, 320))
    task = Task("lgbm", fold, fold.train, lgbm.Params.demo(), 7)
    inputs = Inputs(X, y, ("a", "b", "c"), "1h", Events(None, lambda: 0.0, False), None)
    entry = run_task(task, inputs, "cpu")
    assert entry.facts["arithmetic"] == {"precision": "fp32", "predict_batch": 2048}
    ways = (cards.Arithmetic(), cards.Arithmetic("bf16"), cards.Arithmetic("fp32", 4096))
    keys = set()
    for way in ways:
        monkeypatch.setattr(cards, "arithmetic", lambda device, features, way=way: way)
        keys |= {keyed(task, inputs, device, {"lgbm": "c"}).key for device in ("cuda:0", "cuda:1")}
    assert len(keys) == len(ways)
