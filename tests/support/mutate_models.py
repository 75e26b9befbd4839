"""Damage a model file in many ways and let modelrun.py look at each: `python THIS KIND FILE N`.

Prints a JSON list of how each came out: "answered", "ended by SIGABRT", or a traceback, which there
must not be. The libraries are imported once; each damaged file is looked at in a fork of its own
with limits, as childprocess.py starts a child for each.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
import traceback
from pathlib import Path

from macd.app.predict import modelrun
from macd.app.predict.boosting import import_lightgbm

SECONDS = 3  # of computing


def damaged(whole: bytes, chance: random.Random) -> bytes:
    """Some bytes changed, one of them often at a place where sizes stand; or cut short."""
    data = bytearray(whole)
    if chance.random() < 0.15:
        return bytes(data[: chance.randrange(1, len(data))])
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        at = chance.randrange(min(len(data), chance.choice((64, 512, len(data)))))
        data[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, 0x2D, 0x39, chance.randrange(256)))
    return bytes(data)


def looked_at(kind: str, path: Path) -> str:
    read, write = os.pipe()
    child = os.fork()
    if not child:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
        try:
            question = {"kind": kind, "path": str(path), "top": str(path.parent), "names": []}
            answer = modelrun.answer(question)
            json.dumps(answer)
            told = "answered" if answer["detail"] or answer["wrong"] else "said nothing"
        except BaseException:
            told = traceback.format_exc()
        os.write(write, told.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        told = answer.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return f"ended by {signal.Signals(os.WTERMSIG(status)).name}"
    return told


def main(kind: str, original: str, times: int) -> None:
    if kind == "lgbm":
        import_lightgbm()
    for name in {"onnx": ("onnx", "onnxruntime"), "lgbm": ()}.get(kind, (kind,)):
        importlib.import_module(name)
    chance = random.Random(7)
    whole = Path(original).read_bytes()
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, Path(original).name)
        told = []
        for _ in range(times):
            path.write_bytes(damaged(whole, chance))
            told.append(looked_at(kind, path))
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
