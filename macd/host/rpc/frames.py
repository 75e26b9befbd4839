"""The messages on the wire, one text for both ends, so that they cannot drift apart.

A frame is: tag (16 random bytes of the session), three big-endian u32 (header length, payload
length, CRC-32 of header and payload), the header as JSON, the payload. The tag lets a reader find
the next frame after noise that a login shell or a stray child wrote between two frames; the CRC
catches noise inside one. Bytes anywhere in a header travel in the payload, uncopied by JSON.

This module does no I/O of its own: it is given a `read` and returns or takes bytes.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from typing import Any

TAG_LENGTH = 16
MAX_HEADER = 8 << 20
MAX_PAYLOAD = 8 << 20
MAX_NOISE = 64 << 10
CHUNK = 128 << 10

_LENGTHS = struct.Struct(">III")
_BYTES = "$bytes"
_WORTH_COMPRESSING = 512


class FrameError(Exception):
    """The stream cannot be understood any more; `noise` is what stood where a frame should."""

    def __init__(self, what: str, noise: bytes = b"") -> None:
        super().__init__(what)
        self.noise = noise


class EndOfStreamError(FrameError):
    """The peer closed the stream; `noise` is what it wrote after its last whole frame."""


def encode(tag: bytes, message: dict[str, Any], *, compress: bool = True) -> bytes:
    """One frame for `message`, whose values are JSON or bytes.

    Raises FrameError when it would be larger than a reader accepts.
    """
    chunks: list[bytes] = []
    header = _lift_bytes(message, chunks)
    payload = b"".join(chunks)
    raw_length = len(payload)
    if raw_length > MAX_PAYLOAD:
        raise FrameError(f"a message carries {raw_length} bytes, more than {MAX_PAYLOAD}")
    if compress and raw_length >= _WORTH_COMPRESSING:
        squeezed = zlib.compress(payload, 1)
        if len(squeezed) < raw_length * 0.95:
            payload = squeezed
            header["$zlib"] = raw_length
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    if len(text) > MAX_HEADER:
        raise FrameError(f"a message header has {len(text)} bytes, more than {MAX_HEADER}")
    checksum = zlib.crc32(payload, zlib.crc32(text))
    return tag + _LENGTHS.pack(len(text), len(payload), checksum) + text + payload


def read_frame(
    read: Callable[[int], bytes], tag: bytes, *, max_noise: int = MAX_NOISE
) -> tuple[dict[str, Any], bytes]:
    """The next message and the noise skipped to find it.

    `read(n)` returns exactly n bytes, or fewer only at the end of the stream. Raises
    EndOfStreamError at the end, FrameError for too much noise, a damaged frame, a size out of
    bounds.
    """
    noise = _skip_to_tag(read, tag, max_noise)
    lengths = _exactly(read, _LENGTHS.size)
    header_length, payload_length, checksum = _LENGTHS.unpack(lengths)
    if header_length > MAX_HEADER or payload_length > MAX_PAYLOAD:
        raise FrameError("a frame claims more bytes than allowed", noise)
    text = _exactly(read, header_length)
    payload = _exactly(read, payload_length)
    if zlib.crc32(payload, zlib.crc32(text)) != checksum:
        raise FrameError("a frame is damaged: something else wrote into the stream", noise)
    try:
        header = json.loads(text)
    except ValueError as error:
        raise FrameError("a frame header is not JSON", noise) from error
    if not isinstance(header, dict):
        raise FrameError("a frame header is not an object", noise)
    if "$zlib" in header:
        payload = _inflate(payload, header.pop("$zlib"))
    message: dict[str, Any] = _lower_bytes(header, payload)
    return message, noise


def _skip_to_tag(read: Callable[[int], bytes], tag: bytes, max_noise: int) -> bytes:
    window = bytearray(read(len(tag)))
    while not window.endswith(tag):
        if len(window) > max_noise + len(tag):
            raise FrameError(f"more than {max_noise} bytes that are no message", bytes(window))
        more = read(_shortfall(window, tag))
        if not more:
            raise EndOfStreamError("the stream ended", bytes(window))
        window += more
    return bytes(window[: -len(tag)])


def _shortfall(window: bytearray, tag: bytes) -> int:
    """How many more bytes are needed at least before `window` can end with `tag`."""
    for matched in range(min(len(tag), len(window)), 0, -1):
        if window.endswith(tag[:matched]):
            return len(tag) - matched
    return len(tag)


def _exactly(read: Callable[[int], bytes], count: int) -> bytes:
    data = read(count) if count else b""
    if len(data) != count:
        raise EndOfStreamError("the stream ended inside a frame", data)
    return data


def _inflate(payload: bytes, raw_length: Any) -> bytes:
    if not isinstance(raw_length, int) or not 0 < raw_length <= MAX_PAYLOAD:
        raise FrameError("a frame claims more bytes than allowed")
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(payload, raw_length)
        more = inflater.decompress(inflater.unconsumed_tail, 1)
    except zlib.error as error:
        raise FrameError(f"a payload does not decompress: {error}") from error
    if len(data) != raw_length or more or not inflater.eof:
        raise FrameError("a payload is not as long as it says")
    return data


def _lift_bytes(value: Any, chunks: list[bytes]) -> Any:
    if isinstance(value, (bytes, bytearray, memoryview)):
        chunks.append(bytes(value))
        return {_BYTES: len(chunks[-1])}
    if isinstance(value, dict):
        if _BYTES in value or "$zlib" in value:
            raise FrameError("a message uses a reserved key")
        return {key: _lift_bytes(item, chunks) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_lift_bytes(item, chunks) for item in value]
    return value


def _lower_bytes(header: Any, payload: bytes) -> Any:
    """Put the payload's bytes back where `_lift_bytes` found them: JSON keeps the order."""
    position = 0

    def lower(value: Any) -> Any:
        nonlocal position
        if isinstance(value, dict):
            length = value.get(_BYTES)
            if length is None:
                return {key: lower(item) for key, item in value.items()}
            if not isinstance(length, int) or not 0 <= length <= len(payload) - position:
                raise FrameError("a frame refers to bytes it does not carry")
            position += length
            return payload[position - length : position]
        if isinstance(value, list):
            return [lower(item) for item in value]
        return value

    return lower(header)
