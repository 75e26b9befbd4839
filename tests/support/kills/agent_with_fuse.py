"""invoke, in a process whose agents carry a fuse: one kills itself with SIGKILL at some call.

A call is a request or a frame of data. KILLED_AT is its number, or the name of the first of its
kind, and when: "taken" (nothing of it is
done yet) or "done" (all of it is, and nobody hears so). The fuse travels with the agent's source
over the real channel; the product knows nothing of it. Run as a script by the tests.
"""

from __future__ import annotations

import io
import itertools
import os
import sys
import threading
import zipfile
import zlib
from typing import Any

from invoke.main import program

from macd.ssh import archive
from macd.ssh.session import Session

AGENT = "macd/host/rpc/agent.py"
FUSE = """

def _fused():
    import signal
    taking, encoding = Peer._next, Peer.encode

    def blow():
        os.kill(os.getpid(), signal.SIGKILL)

    def take(peer):
        if getattr(peer, "fuse", "") == "data":
            blow()
        message = taking(peer)
        when = message.get("die")
        if when == "taken":
            blow()
        if when or "op" in message:
            peer.fuse = ("op" if "op" in message else "data") if when else ""
        return message

    def encode(peer, message):
        if "clock" in message and getattr(peer, "fuse", ""):
            blow()
        return encoding(peer, message)

    Peer._next, Peer.encode = take, encode


_fused()
"""


def with_fuse(plain: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(plain)) as before, zipfile.ZipFile(out, "w") as after:
        for info in before.infolist():
            data = before.read(info)
            after.writestr(info, data + FUSE.encode() * (info.filename == AGENT))
    return out.getvalue()


def main() -> None:
    at, when = os.environ["KILLED_AT"].split()
    calls = itertools.count(1)
    due = [at]
    one_at_a_time = threading.Lock()
    encode, end, opening = Session._encode, Session._end, archive.opening
    fused = zlib.compress(with_fuse(archive.build()))

    def encoding(self: Session, message: dict[str, Any], **named: Any) -> bytes:
        with one_at_a_time:
            number, name = str(next(calls)), message.get("op", "data")
            fatal = bool({number, name}.intersection(due))
            if fatal:
                due.clear()
            print(f"#{number} {name}", file=sys.stderr, flush=True)
        return encode(self, {**message, "die": when} if fatal else message, **named)

    def ending(self: Session, error: Exception) -> None:
        if not self._closed:
            print("#gone", file=sys.stderr, flush=True)
        end(self, error)

    def opening_with_fuse(tag: bytes, copy: str = "", *, travels: bool = True) -> bytes:
        return opening(tag)  # neither the copy on a host nor its compiled code has the fuse

    Session._encode = encoding  # type: ignore[method-assign]
    Session._end = ending  # type: ignore[method-assign]
    archive.compressed = lambda: fused  # type: ignore[assignment]
    archive.opening = opening_with_fuse
    program.run()


if __name__ == "__main__":
    main()
