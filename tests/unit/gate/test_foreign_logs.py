"""Logs as rotations, other systems and containers leave them are judged as the plain ones."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macd.errors import UsageError
from macd.gate import foreign_logs, report
from macd.inventory import load
from tests.support.gate_rule import RULE

NOW = datetime(2026, 11, 27, tzinfo=UTC)
LINES = b"".join(
    json.dumps(
        {
            "timestamp": f"2026-11-2{4 + n // 24}T{n % 24:02d}:00:01+00:00",
            "level": "SIGNAL",
            "symbol": "BTCUSDT",
            "bar_time": f"2026-11-2{4 + n // 24}T{n % 24:02d}:00:00+00:00",
            "tf": "1h",
            "data": {
                "components": {
                    "ml_bull_prob": 0.4 + n / 200,
                    "ml_lstm_prob": 0.5 + n / 300,
                    "ml_tft_prob": 0.5 - n / 300,
                    "ml_stacking_prob": 0.45 + n / 250,
                    "ml_stacking_mode": "shadow",
                    "ml_error": None,
                    "note": "é" * (9000 if n == 5 else 1),
                }
            },
        },
        ensure_ascii=False,
    ).encode()
    + b"\n"
    for n in range(45)
)


def docker(raw: bytes) -> bytes:
    """As its json-file driver writes: a long line in parts, other output between."""
    made = []
    for line in raw.decode().splitlines(keepends=True):
        parts = [line[at : at + 4096] for at in range(0, len(line), 4096)]
        made += [
            {"log": part, "stream": "stdout", "time": "2026-11-24T00:00:01Z"} for part in parts
        ]
        made.append({"log": "loaded 3 models\n", "stream": "stderr", "time": "x"})
    return b"".join(json.dumps(entry).encode() + b"\n" for entry in made)


def cri(raw: bytes) -> bytes:
    made = b""
    for line in raw.splitlines():
        head = b"2026-11-24T00:00:01.1Z stdout "
        made += head + b"P " + line[:100] + b"\n" + head + b"F " + line[100:] + b"\n"
    return made


def journal(raw: bytes) -> bytes:
    return b"".join(
        json.dumps({"__REALTIME_TIMESTAMP": "1", "MESSAGE": line.decode()}).encode() + b"\n"
        for line in raw.splitlines()
    )


def prefixed(raw: bytes) -> bytes:
    return b"".join(b"Nov 24 00:00:01 prod app[77]: " + line + b"\n" for line in raw.splitlines())


def export(raw: bytes) -> bytes:
    """As `journalctl -o export` writes."""
    made = b""
    for line in raw.splitlines():
        made += (
            b"__CURSOR=s=1\n__REALTIME_TIMESTAMP=1\n_PID=7\nMESSAGE=" + line + b"\nPRIORITY=6\n\n"
        )
    return made


def array(raw: bytes) -> bytes:
    return b"[" + b",\n".join(raw.splitlines()) + b"]"


def epoch(raw: bytes, unit: float, name: str = "timestamp") -> bytes:
    made = []
    for line in raw.splitlines():
        document = json.loads(line)
        seconds = datetime.fromisoformat(document.pop("timestamp")).timestamp()
        made.append(json.dumps({name: round(seconds * unit), **document}).encode() + b"\n")
    return b"".join(made)


def loud(raw: bytes) -> bytes:
    return raw.replace(b"SIGNAL", b"Signal")


WAYS: list[tuple[str, str, Callable[[bytes], bytes], str]] = [
    ("plain", "trades_20261124.jsonl", bytes, ""),
    ("gz", "trades_20261124.jsonl.gz", gzip.compress, "1 file compressed"),
    ("gz without the name", "trades_20261124.jsonl", gzip.compress, "compressed"),
    ("bz2", "app.log.bz2", bz2.compress, "compressed"),
    ("xz", "app.log.1.xz", lzma.compress, "compressed"),
    ("bom", "trades_20261124.jsonl", lambda raw: b"\xef\xbb\xbf" + raw, "byte order mark"),
    ("utf-16", "signals.txt", lambda raw: raw.decode().encode("utf-16"), "UTF-16"),
    ("utf-16-le", "signals.txt", lambda raw: raw.decode().encode("utf-16-le"), "UTF-16"),
    ("crlf", "trades_20261124.jsonl", lambda raw: raw.replace(b"\n", b"\r\n"), ""),
    ("docker", "0a1b-json.log", docker, "wrapped by Docker"),
    ("cri", "0.log", cri, "wrapped by a Kubernetes node"),
    ("journal", "unit.json", journal, "journald"),
    ("export", "unit.txt", export, "journald"),
    ("array", "signals.json", array, "one JSON list"),
    ("microseconds", "app.log", lambda raw: epoch(raw, 1e6), "times counted from 1970"),
    ("nanoseconds", "app.log", lambda raw: epoch(raw, 1e9), "times counted from 1970"),
    ("time by another name", "app.log", lambda raw: epoch(raw, 1e3, "ts"), ""),
    ("case", "app.log", loud, "levels that are not in capitals"),
    ("number", "app.log", lambda raw: raw.replace(b'"SIGNAL"', b"30"), "levels that are numbers"),
    ("news", "app.log", lambda raw: raw.replace(b"SIGNAL", b"INFO"), ""),
    ("None", "app.log", lambda raw: raw.replace(b'error": null', b'error": "None"'), ""),
    ("prefix", "syslog.log", prefixed, "a prefix before each line"),
    ("all", "app.log.gz", lambda raw: gzip.compress(docker(raw)), "Docker"),
]


def judged(place: Path) -> report.Judged:
    return report.of_files(load("lab"), place, RULE, None, NOW)


@pytest.mark.parametrize(("way", "name", "wrap", "said"), WAYS, ids=[way[0] for way in WAYS])
def test_every_way_is_judged_alike(
    tmp_path: Path, way: str, name: str, wrap: Callable[[bytes], bytes], said: str
) -> None:
    (tmp_path / name).write_bytes(wrap(LINES))
    for place in (tmp_path, tmp_path / name):
        judgement = judged(place)
        assert (judgement.decision.verdict, judgement.document["bars"]) == ("PASS", 45), way
        assert any(said in note for note in judgement.document["notes"]) or not said
    dropped = [note for note in judgement.document["notes"] if "left out" in note]
    assert bool(dropped) is (way in ("docker", "all"))


def owned(raw: bytes) -> bytes:
    """The service's own lines: counted, and each with its release."""
    rows = enumerate(map(json.loads, raw.splitlines()), 1)
    more = {"release": "20261101T000000Z-0123abcd"}
    return b"".join(json.dumps({**row, **more, "seq": n}).encode() + b"\n" for n, row in rows)


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda raw: raw.replace(b"SIGNAL", b"signal"), "levels that are not in capitals"),
        (lambda raw: epoch(raw, 1e3), "times counted from 1970"),
        (lambda raw: gzip.compress(epoch(loud(raw), 1)), "levels that are not in capitals"),
    ],
)
def test_lines_of_the_service_that_a_collector_spelt_anew(
    tmp_path: Path, wrap: Callable[[bytes], bytes], said: str
) -> None:
    """On a host they are no evidence; a local file is none anyway."""
    (tmp_path / "app.log").write_bytes(wrap(owned(LINES)))
    judgement = judged(tmp_path)
    assert (judgement.decision.verdict, judgement.document["bars"]) == ("PASS", 45)
    assert any(said in note for note in judgement.document["notes"])


@pytest.mark.parametrize("form", [bytes, owned])
def test_a_last_line_without_an_end_counts_and_one_cut_off_is_said(
    tmp_path: Path, form: Callable[[bytes], bytes]
) -> None:
    lines = form(LINES)
    (tmp_path / "app.log").write_bytes(lines.rstrip())
    judgement = judged(tmp_path)
    assert judgement.document["bars"] == 45
    assert "1 file whose last line has no end" in judgement.document["notes"]
    (tmp_path / "app.log").write_bytes(lines.rstrip()[:-30])
    judgement = judged(tmp_path)
    assert (judgement.decision.verdict, judgement.document["bars"]) == ("PASS", 44)
    assert "the last line of app.log is cut off: left out" in judgement.document["notes"]


def test_rotated_files_are_read_from_the_oldest(tmp_path: Path) -> None:
    lines = LINES.splitlines(keepends=True)
    (tmp_path / "app.log").write_bytes(b"".join(lines[30:]))
    (tmp_path / "app.log.1").write_bytes(b"".join(lines[15:30]))
    (tmp_path / "app.log.2.gz").write_bytes(gzip.compress(b"".join(lines[:15])))
    judgement = judged(tmp_path)
    assert [entry["name"] for entry in judgement.document["logs"]] == [
        *("app.log.2", "app.log.1", "app.log"),
    ]
    assert (judgement.decision.verdict, judgement.document["bars"]) == ("PASS", 45)


@pytest.mark.parametrize(("magic", "kind"), [(b"\x28\xb5\x2f\xfd", "zstd"), (b"PK\x03\x04", "zip")])
def test_what_is_not_unpacked_is_named(tmp_path: Path, magic: bytes, kind: str) -> None:
    (tmp_path / f"trades_20261124.jsonl.{kind.removesuffix('d')}").write_bytes(magic + LINES)
    with pytest.raises(UsageError) as caught:
        judged(tmp_path)
    assert f"packed by {kind}" in caught.value.why


def test_a_damaged_file_is_named_and_hides_no_other(tmp_path: Path) -> None:
    (tmp_path / "trades_20261124.jsonl").write_bytes(LINES)
    (tmp_path / "trades_20261123.jsonl.gz").write_bytes(gzip.compress(LINES)[:200])
    judgement = judged(tmp_path)
    assert judgement.document["bars"] == 45
    assert any(
        "trades_20261123.jsonl.gz can't be unpacked" in n for n in judgement.document["notes"]
    )


@settings(max_examples=60)
@given(st.binary(max_size=400), st.sampled_from([way[2] for way in WAYS]), st.integers(0, 300))
def test_no_bytes_end_in_an_exception(
    tmp_path_factory: pytest.TempPathFactory,
    junk: bytes,
    wrap: Callable[[bytes], bytes],
    at: int,
) -> None:
    directory = tmp_path_factory.mktemp("logs")
    whole = wrap(b"".join(LINES.splitlines(keepends=True)[:3]))
    (directory / "app.log").write_bytes(whole[:at] + junk + whole[at:])
    logs = foreign_logs.plain(directory, directory / "copies")
    assert logs.sources or logs.notes
