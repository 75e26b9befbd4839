"""What a CUDA card allows: how many fits share it, how much it predicts at once, and bf16 or not.

The rows of one optimiser step never grow with the card. The nets learn what there is in about a
hundred steps, and a larger batch would only take steps away (docs/adr/batch.md). What grows is what
leaves the learning alone: fits side by side, and the windows of one prediction.

Everything here depends on the card alone, never on what is free at the moment: the same machine
makes the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from macd.app.train.fitdata import SEQ

if TYPE_CHECKING:
    from torch import nn

PREDICT_BATCH = 2_048  # windows; on a CPU more costs memory and wins nothing
MOST_PREDICTED = 65_536
_FIT_BYTES = 3 << 30  # CUDA's own half GiB, the bars, a step's activations, a prediction
_MOST_FITS = 4  # each is a process with some 3 GiB of main memory, too
_HELD = 32  # numbers a net holds for each of a window's; on a CPU the full LSTM holds 11


@dataclass(frozen=True)
class Arithmetic:
    """How a net's numbers come about on a device: in the key and the facts of each fit.

    precision: fp32 or bf16, of training. predict_batch: windows predicted at once.
    """

    precision: str = "fp32"
    predict_batch: int = PREDICT_BATCH


CPU = Arithmetic()


@dataclass(frozen=True)
class Cards:
    """What decides about numbers on cards. memory: bytes of the smallest; bf16: all honour it."""

    memory: int
    bf16: bool


# At most one: the cards of a cluster, which need not be this machine's.
_cluster_cards: list[Cards] = []


def use(cards: Cards) -> None:
    """From now on these cards count, in this process; a cluster's, as it was asked."""
    _cluster_cards[:] = [cards]


def known() -> Cards | None:
    """What `use` was given."""
    return _cluster_cards[0] if _cluster_cards else None


def here() -> Cards | None:
    """The cards of this machine; None where torch finds none."""
    import torch  # noqa: PLC0415 - takes seconds to import, and LightGBM needs none

    return Cards(_smallest_here(), _all_honour_bf16()) if torch.cuda.is_available() else None


def fits_on(card_bytes: int) -> int:
    """How many fits share a card of so much memory: one for each 3 GiB, at most four."""
    return max(1, min(_MOST_FITS, card_bytes // _FIT_BYTES))


def prediction_batch(card_bytes: int, window_bytes: int) -> int:
    """Windows that an eighth of the card holds: a power of two, 2,048 to 65,536.

    card_bytes: all memory of the card. window_bytes: of one window of bars, float32. An eighth is
    half of a fit's share where four run. A power of two, because a driver that takes some megabytes
    more must not change the numbers.
    """
    share = card_bytes // _MOST_FITS // 2
    fitting = max(1, share // (_HELD * window_bytes))
    power: int = 1 << (fitting.bit_length() - 1)
    return max(PREDICT_BATCH, min(MOST_PREDICTED, power))


def arithmetic(device: str, features: int) -> Arithmetic:
    """How nets over so many features are computed on `device`, such as cpu or cuda:0.

    Cards of one machine that differ are all treated as the smallest: a fit may run on any.
    """
    if not device.startswith("cuda"):
        return CPU
    cards = known()
    precision = "bf16" if (cards.bf16 if cards else _all_honour_bf16()) else "fp32"
    return Arithmetic(precision, prediction_batch(smallest_card(), 4 * SEQ * features))


def smallest_card() -> int:
    """Bytes of the smallest CUDA card of this machine, or of the cluster that is used."""
    cards = known()
    return cards.memory if cards else _smallest_here()


@lru_cache(maxsize=1)
def _smallest_here() -> int:
    import torch  # noqa: PLC0415 - takes seconds to import, and LightGBM needs none

    cards = range(torch.cuda.device_count())
    return min(int(torch.cuda.get_device_properties(card).total_memory) for card in cards)


@lru_cache(maxsize=1)
def _all_honour_bf16() -> bool:
    import torch  # noqa: PLC0415

    cards = range(torch.cuda.device_count())
    return all(honours_bf16(f"cuda:{card}") for card in cards)


def honours_bf16(device: str, make: Callable[[int, int], nn.Module] | None = None) -> bool:
    """Whether a recurrent layer under bf16 autocast really computes in bf16 on this device.

    torch casts what it gives to cuDNN's recurrent kernels to FP16, whichever type was asked for
    (AutocastRNN.cpp), and cuDNN knows bf16 there only since 9.13 (pytorch #164411). FP16 has no
    gradients below 6e-8, and our loss is not scaled up for it. So this looks at what comes out: its
    type, and a gradient of 1e-10 against the same gradient in fp32. An error is a no; a full card
    raises.

    make: (inputs, outputs) -> the layer, called with (batch, steps, inputs); torch's LSTM.
    """
    import torch  # noqa: PLC0415
    from torch import nn  # noqa: PLC0415

    def lstm(inputs: int, outputs: int) -> nn.Module:
        return nn.LSTM(inputs, outputs, batch_first=True)

    kind = torch.device(device)
    tiny = 1e-10
    try:
        with torch.random.fork_rng(devices=[kind] if kind.type == "cuda" else []):
            torch.manual_seed(0)
            layer = (make or lstm)(16, 32).to(kind)
            given = torch.randn(64, 8, 16, device=kind)

            def gradients(scale: float, *, lowered: bool) -> tuple[torch.dtype, torch.Tensor]:
                layer.zero_grad(set_to_none=True)
                with torch.autocast(kind.type, torch.bfloat16, enabled=lowered):
                    states = layer(given)[0]
                (states.float().square().mean() * scale).backward()
                made = [p.grad.flatten() for p in layer.parameters() if p.grad is not None]
                return states.dtype, torch.cat(made).double() / scale

            _, whole = gradients(1.0, lowered=False)
            kept, lowered = gradients(tiny, lowered=True)
    except torch.OutOfMemoryError:
        raise  # it says nothing about bf16, and would change the numbers
    except RuntimeError:  # CUDA, cuDNN and autocast all say no by it
        return False
    off = float((lowered - whole).norm() / whole.norm())
    return kept == torch.bfloat16 and off < 0.05  # False for NaN, too
