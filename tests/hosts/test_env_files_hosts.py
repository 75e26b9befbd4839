"""Any .env that systemd accepts: the flag is set and taken back, and all else stays to the byte.

Files are generated from lines of known meaning, so what must come out is known without a parser.
systemd reads them with the very library that its PID 1 is linked to; a sample is started as units.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import pytest

from macd.host.envfile import readings, rewritten
from macd.host.flag.flag_file import FLAG, WEIGHT
from tests.hosts.test_flag_hosts import PROBE
from tests.support.hosts.fleet import Hosts

pytestmark = pytest.mark.hosts

SAMPLE = 40
# load_env_file and strv_env_clean_with_callback are what PID 1 calls for EnvironmentFile=
# (exec_context_load_environment in src/core/execute.c). Answers null where systemd takes nothing.
PARSER = """
import base64, ctypes, glob, json, os, sys
lib = ctypes.CDLL(glob.glob("/usr/lib/*/systemd/libsystemd-shared-*.so")[0])
strv = ctypes.POINTER(ctypes.c_char_p)
lib.load_env_file.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(strv)]
clean = lib.strv_env_clean_with_callback
clean.argtypes, clean.restype = [strv, ctypes.c_void_p, ctypes.c_void_p], strv
def parsed(data):
    with open("/run/one.env", "wb") as file:
        file.write(data)
    found = strv()
    if lib.load_env_file(None, b"/run/one.env", ctypes.byref(found)) < 0:
        return None
    pairs, at = [], 0
    kept = clean(found, None, None)
    while kept and kept[at] is not None:
        pairs.append(base64.b64encode(kept[at]).decode())
        at += 1
    lib.strv_free(found)
    return pairs
lib.strv_free.argtypes = [strv]
print(json.dumps([parsed(base64.b64decode(text)) for text in json.load(sys.stdin)]))
"""

Variables = dict[bytes, bytes]


@dataclass(frozen=True)
class Line:
    """One line or lines that mean one thing; key: which of ours it sets to `value`."""

    text: bytes
    end: bytes = b"\n"
    lead: bytes = b""
    key: str = ""
    value: str = ""


# Theirs: what teams have in such files, and what only systemd's manual knows.
THEIRS = [
    *(b"https_proxy=http://proxy.example:3128", b"DB_URL=postgres://u:p!w@h/db?sslmode=require&x"),
    *(b"API_KEY=abcDEF+/==", b'JSON={"a": [1, "two"]}', b"export TOKEN=hunter2", b"# a comment"),
    *(b"; ML_ENABLE_STACKING=1", b"#ML_ENABLE_STACKING=1", b"", b"   ", b"no assignment here"),
    *(b"1BAD=2", b"A-B=3", b"PATTERN=^[a-z]+$", b"NAME=\xc3\xa9\xe4\xb8\xad", b"# latin-1 \xe9"),
    *(b'QUOTED="two words"', b"SINGLE='x\"y'", b'MANY="a" \'b\' c"d', b'ESC="x\\"y\\$z\\q"'),
    *(b'LINES="one\ntwo\n"', b"LINES='one\n\nML_ENABLE_STACKING=1\n'", b"LONG=one\\\ntwo\\\nthree"),
    *(b'JOINED="one\\\ntwo"', b"SPACED = 1 ", b"TAB=\t1\t", b"EMPTY=", b"HOME_=$HOME`id`%h"),
    *(b"UNDER_=back\\\\slash\\ x", b"CONTROL=\x01", b"TWICE=1", b"TWICE=2", b"VALUE== =",
      b"MY_ML_ENABLE_STACKING=1", b"ML_ENABLE_STACKING2=1", b"export ML_ENABLE_STACKING=1"),
]  # fmt: skip
# Behind these nothing can be added: they would swallow it.
LAST = [b'OPEN="never closed', b"OPEN='never closed\nB=2\n", b"BACK=slash\\", b"# comment\\"]
BARE = [bytes((at,)) for at in range(0x20, 0x7F) if at != 0x5C] + [b"\xc3\xbc", b"\t"]
ENDS = [[b"\n"], [b"\n"], [b"\r\n"], [b"\r"], [b"\n", b"\r\n"]]


def made(chance: random.Random) -> list[Line]:
    ends = chance.choice(ENDS)
    lines = [a_line(chance, chance.choice(ends)) for _ in range(chance.randrange(12))]
    how = chance.random()
    if how < 0.1:
        lines.append(Line(chance.choice(LAST), end=b""))
    elif how < 0.4 and lines:
        lines[-1] = replace(lines[-1], end=b"")
    if lines and not lines[0].key and lines[0].text not in LAST and chance.random() < 0.05:
        lines[0] = replace(lines[0], text=b"\xef\xbb\xbf" + lines[0].text)
    return lines


def a_line(chance: random.Random, end: bytes) -> Line:
    how = chance.random()
    if how < 0.55:
        return Line(chance.choice(THEIRS), end)
    if how < 0.8:
        name = chance.choice([b"A", b"B_1", b"_c", b"Ab"])
        value = b"".join(chance.choices(BARE, k=chance.randrange(1, 30)))
        return Line(name + b"=x" + value, end)
    key = chance.choice([FLAG, FLAG, WEIGHT])
    value = chance.choice(["0", "1", "25", "on", ""])
    said = value.encode()
    ways = [b"=" + said, b'="' + said + b'"', b" = '" + said + b"' "]
    if said:
        ways.append(b"=\\\n" + said)
    text = key.encode() + chance.choice(ways)
    return Line(text, end, chance.choice([b"", b"", b"  ", b"\t"]), key, value)


def joined(lines: Sequence[Line]) -> bytes:
    return b"".join(line.lead + line.text + line.end for line in lines)


def with_set(lines: Sequence[Line], key: str, value: str | None) -> list[Line]:
    """The lines as they must be once `key` is set, or for None gone."""
    if value is None:
        return [line for line in lines if line.key != key]
    text = f"{key}={value}".encode()
    after = [
        replace(line, text=text, value=value) if line.key == key and line.value != value else line
        for line in lines
    ]
    if any(line.key == key for line in lines):
        return after
    ours = Line(text, b"\n", b"", key, value)
    if after and after[-1].text.endswith(tuple(LAST)):
        return [ours, *after]
    if joined(after)[-1:] not in (b"", b"\n", b"\r"):
        after[-1] = replace(after[-1], end=b"\n")
    return [*after, ours]


def changed(lines: Sequence[Line], changes: Mapping[str, str | None]) -> list[Line]:
    for key, value in changes.items():
        lines = with_set(lines, key, value)
    return list(lines)


def asked_of_systemd(hosts: Hosts, files: Sequence[bytes]) -> list[Variables | None]:
    asked = json.dumps([base64.b64encode(data).decode() for data in files])
    answers = json.loads(hosts.prod.exec("python3", "-I", "-c", PARSER, input=asked))
    return [None if pairs is None else variables(map(base64.b64decode, pairs)) for pairs in answers]


def variables(pairs: Iterable[bytes]) -> Variables:
    return {name: value for name, _, value in (pair.partition(b"=") for pair in pairs)}


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.full)])
def test_enabled_and_taken_back_all_else_stays(hosts: Hosts, count: int) -> None:
    chance = random.Random(18)
    candidates = [made(chance) for _ in range(count + count // 20 + 20)]
    read = asked_of_systemd(hosts, [joined(lines) for lines in candidates])
    accepted = [
        (lines, them) for lines, them in zip(candidates, read, strict=True) if them is not None
    ][:count]
    assert len(accepted) == count
    turned = []
    for lines, _ in accepted:
        weight = chance.choice([None, "25"])
        on = changed(lines, {FLAG: "1", WEIGHT: weight})
        off = changed(on, {FLAG: "0", WEIGHT: None})
        data = rewritten(joined(lines), {FLAG: "1", WEIGHT: weight})
        assert data == joined(on), joined(lines)
        back = rewritten(data, {FLAG: "0", WEIGHT: None})
        assert back == joined(off), joined(lines)
        turned += [data, back]
    then = iter(asked_of_systemd(hosts, turned))
    for lines, before in accepted:
        for value, after in (("1", next(then)), ("0", next(then))):
            assert after is not None, joined(lines)
            assert after[FLAG.encode()] == value.encode(), joined(lines)
            assert value == "1" or WEIGHT.encode() not in after
            assert others(after) == others(before), joined(lines)
        assert before == as_we_read(joined(lines)), joined(lines)
    sample = [joined(lines) for lines, _ in accepted[:SAMPLE]] + turned[: 2 * SAMPLE]
    assert started_as_units(hosts, sample) == asked_of_systemd(hosts, sample)


def others(found: Variables) -> Variables:
    ours = (FLAG.encode(), WEIGHT.encode())
    return {name: value for name, value in found.items() if name not in ours}


def started_as_units(hosts: Hosts, files: Sequence[bytes]) -> list[Variables]:
    """What the processes of units got, less what systemd gives each of them."""
    asked = json.dumps([base64.b64encode(data).decode() for data in [b"", *files]])
    said = json.loads(hosts.prod.exec("python3", "-c", PROBE, input=asked))
    raw = [base64.b64decode(text).split(b"\0") for text in said["variables"]]
    always, *found = [variables(pair for pair in pairs if pair) for pairs in raw]
    return [{k: v for k, v in one.items() if k not in always} for one in found]


def as_we_read(data: bytes) -> Variables:
    """By the rules before systemd 254, which is what these hosts have."""
    return {key.encode(): value.encode() for key, value in readings(data)[0].items()}
