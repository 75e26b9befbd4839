"""A fitted net on disk: FAMILY_TF.pt (weights, config, how it went) and FAMILY_TF_meta.json."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from macd.app.train.checkpoint import pack, unpack, write_whole
from macd.app.train.fitdata import Facts
from macd.app.train.meta import meta_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def write_net(
    family: str,
    net: nn.Module,
    *,
    params: DataclassInstance,
    features: tuple[str, ...],
    loop: dict[str, Any],
    directory: Path,
    tf: str,
    facts: Facts,
) -> list[Path]:
    """Write both files; `loop` goes into both, `facts` into the meta beside the features."""
    config = {"params": dataclasses.asdict(params), "features": list(features)}
    weights = {name: value.cpu() for name, value in net.state_dict().items()}
    state = {"format": f"macd-{family}/1", "weights": weights, "config": config, "loop": loop}
    return [
        write_whole(directory / f"{family}_{tf}.pt", pack(state)),
        write_whole(
            directory / f"{family}_{tf}_meta.json",
            meta_json(family, tf, params, features, {**loop, **facts}),
        ),
    ]


def read_net(family: str, directory: Path, tf: str) -> dict[str, Any]:
    """The .pt's content: weights, config, loop. Nothing in the file is run (weights_only)."""
    return unpack((directory / f"{family}_{tf}.pt").read_bytes())
