"""Files that are whole or absent: resume points of a training, and the artefacts it leaves."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from macd.host.durable import replace_file

_DIGEST = hashlib.sha256().digest_size


def write_whole(path: Path, data: bytes) -> Path:
    """Write an artefact and return where it is: a kill or power cut leaves old or new."""
    replace_file(path, data, parents=True)
    return path


def pack(state: dict[str, Any]) -> bytes:
    """Tensors and plain values as a torch file that loads with weights_only=True."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def unpack(data: bytes) -> dict[str, Any]:
    """The inverse of `pack`; refuses anything but tensors and plain values."""
    state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return state


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """A resume point, with its own SHA-256 in front: torch doesn't notice a flipped bit."""
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
