"""The files of one fitted model, whole or absent: meta JSON, a net's .pt, checkpoints."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macd.app.market.features import schema_hash
from macd.app.market.labels import HORIZONS
from macd.app.train.fitdata import Facts
from macd.heads import head_names, kind_of
from macd.host.durable import replace_file

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_DIGEST = hashlib.sha256().digest_size


def write_whole(path: Path, data: bytes) -> Path:
    """Write an artefact and return where it is: a kill or power cut leaves old or new."""
    replace_file(path, data, parents=True)
    return path


def meta_json(
    model: str, tf: str, params: DataclassInstance, features: tuple[str, ...], facts: Facts
) -> bytes:
    """Content of a model's meta file: features in order, heads, parameters, and `facts`."""
    document: dict[str, Any] = {
        "model": model,
        "tf": tf,
        "seq_len": 1 if kind_of(model) == "lgbm" else 48,
        "heads": list(head_names(tf)),
        "horizons": list(HORIZONS),
        "features": list(features),
        "schema_hash": schema_hash(features),
        "params": dataclasses.asdict(params),
    }
    text = json.dumps({**document, **facts}, indent=1, sort_keys=True, allow_nan=False)
    return (text + "\n").encode()


def model_of(files: Mapping[str, bytes], family: str, tf: str) -> tuple[Any, Any]:
    """The module of a family, and the fitted model that these files hold."""
    module = import_module(f"macd.app.train.{family}")
    with tempfile.TemporaryDirectory(prefix="macd-model-") as name:
        for file, content in files.items():
            (Path(name) / file).write_bytes(content)
        return module, module.load(Path(name), tf)


def pack(state: dict[str, Any]) -> bytes:
    """Tensors and plain values as a torch file that loads with weights_only=True."""
    import torch  # noqa: PLC0415 - takes seconds to import, and LightGBM needs none

    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def unpack(data: bytes) -> dict[str, Any]:
    """The inverse of `pack`; refuses anything but tensors and plain values."""
    import torch  # noqa: PLC0415 - see above

    state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return state


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint with its own SHA-256 in front: torch doesn't notice a flipped bit."""
    body = pack(state)
    write_whole(path, hashlib.sha256(body).digest() + body)


def read_checkpoint(path: Path, config: str) -> tuple[dict[str, Any] | None, str]:
    """(state, "") when `path` is a whole checkpoint of this very fit, else (None, why not)."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None, ""
    if hashlib.sha256(data[_DIGEST:]).digest() != data[:_DIGEST]:
        return None, "it is damaged or cut short"
    state = unpack(data[_DIGEST:])
    if state.get("config") != config:
        return None, "it belongs to other data, parameters, seed or code"
    return state, ""
