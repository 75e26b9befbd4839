"""The framing survives noise and refuses damage, whatever the message."""

from __future__ import annotations

import io
import os

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from macd.host.rpc import frames

# A busy machine is slow, which is nothing this file is about.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

TAG = bytes(range(200, 216))

scalars = (
    st.none() | st.booleans() | st.integers() | st.text(max_size=40) | st.binary(max_size=2000)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=8).filter(lambda k: not k.startswith("$")), inner)
    ),
    max_leaves=12,
)
messages = st.dictionaries(st.sampled_from(["id", "op", "args", "result"]), values)
noises = st.binary(max_size=400).filter(lambda noise: TAG not in noise)


def decode(wire: bytes) -> tuple[dict, bytes]:
    return frames.read_frame(io.BytesIO(wire).read, TAG)


@patient
@given(messages, st.booleans())
def test_what_goes_in_comes_out(message: dict, compress: bool) -> None:
    got, noise = decode(frames.encode(TAG, message, compress=compress))
    assert got == message
    assert noise == b""


@patient
@given(st.lists(st.tuples(noises, messages), min_size=1, max_size=4))
@example([(TAG[:15], {}), (TAG[:1] * 20, {"id": b"x"})])  # noise that begins like a tag
def test_noise_before_and_between_messages_is_skipped(pairs: list[tuple[bytes, dict]]) -> None:
    stream = io.BytesIO(b"".join(noise + frames.encode(TAG, message) for noise, message in pairs))
    assert [frames.read_frame(stream.read, TAG) for _ in pairs] == [(m, n) for n, m in pairs]


@patient
@given(messages, st.data())
def test_a_torn_frame_is_the_end_of_the_stream(message: dict, data: st.DataObject) -> None:
    wire = frames.encode(TAG, message)
    cut = data.draw(st.integers(0, len(wire) - 1))
    with pytest.raises(frames.EndOfStreamError):
        decode(wire[:cut])


@patient
@given(messages, st.data())
def test_a_flipped_bit_never_passes(message: dict, data: st.DataObject) -> None:
    wire = bytearray(frames.encode(TAG, message))
    bit = data.draw(st.integers(0, len(wire) * 8 - 1))
    wire[bit // 8] ^= 1 << bit % 8
    with pytest.raises(frames.FrameError):
        decode(bytes(wire))


def test_noise_is_bounded_and_shown() -> None:
    noise = b"motd " * 20_000
    with pytest.raises(frames.FrameError, match="no message") as caught:
        decode(noise + frames.encode(TAG, {}))
    assert caught.value.noise.startswith(b"motd motd")
    assert len(caught.value.noise) < frames.MAX_NOISE + 100


@pytest.mark.parametrize("lengths", [(frames.MAX_HEADER + 1, 0), (0, frames.MAX_PAYLOAD + 1)])
def test_a_frame_that_claims_too_much_is_refused_before_it_is_read(lengths: tuple) -> None:
    wire = TAG + frames._LENGTHS.pack(*lengths, 0)
    with pytest.raises(frames.FrameError, match="more bytes than allowed"):
        decode(wire)


def test_a_decompression_bomb_is_refused() -> None:
    small = frames.encode(TAG, {"data": b"\0" * frames.MAX_PAYLOAD})
    assert len(small) < 100_000
    lying = small.replace(b'"$zlib":8388608', b'"$zlib":8000000')
    body = lying[len(TAG) + 12 :]
    checksum = frames.zlib.crc32(body)
    header, payload, _ = frames._LENGTHS.unpack(lying[len(TAG) : len(TAG) + 12])
    with pytest.raises(frames.FrameError, match="not as long as it says"):
        decode(TAG + frames._LENGTHS.pack(header, payload, checksum) + body)


def test_only_what_shrinks_is_compressed() -> None:
    noise = os.urandom(5000)
    assert noise in frames.encode(TAG, {"data": noise})
    assert len(frames.encode(TAG, {"data": b"ab" * 5000})) < 500


@pytest.mark.parametrize(
    "message", [{"data": bytes(frames.MAX_PAYLOAD + 1)}, {"a": {"$bytes": 3}}, {"a": {"$zlib": 1}}]
)
def test_what_a_reader_would_misread_is_not_sent(message: dict) -> None:
    with pytest.raises(frames.FrameError):
        frames.encode(TAG, message)
