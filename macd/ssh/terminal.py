"""An agent over a terminal, for bastions that run no command without one.

A terminal echoes, edits lines and takes some bytes for signals, which would garble every frame. So
the first thing that runs there makes it raw and says so. Only then anything is sent. What a bastion
and a shell print before is skipped like any other noise. A terminal has no end of input: the agent
ends when it is hung up.

A program between may take bytes for commands even so: `ssh -tt` on a bastion goes to the background
at a "~&" that follows a newline, telnet listens to ^]. So what we send goes in percent-encoded
lines (`quote`), in which neither occurs. What comes back needs none of that.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Literal

from macd.errors import ContactLostError

if TYPE_CHECKING:
    from macd.ssh.session import Channel, Link

Terminal = Literal["", "exec", "shell"]  # none; with the command; a login shell, typed into
_RAW = b"macd-terminal-is-raw"
_KEPT = 4096
_LINE = 1 << 15  # bytes before they are quoted
_QUOTED = tuple((bytes([byte]), b"%%%02X" % byte) for byte in b"%~\r\n\x1d")  # "%" first


def quote(data: bytes) -> bytes:
    """`data` as lines without the bytes that a program on the way takes for a command."""
    lines = []
    for start in range(0, len(data), _LINE):
        line = bytes(data[start : start + _LINE])
        for byte, quoted in _QUOTED:
            line = line.replace(byte, quoted)
        lines.append(line + b"\n")
    return b"".join(lines)


def open_channel(link: Link, command: str, terminal: Terminal) -> Channel:
    """Start `command` on `link`, in a raw terminal where the host needs one. Raises MacdError."""
    if not terminal:
        return link.open_channel(command)
    # The quotes keep the word apart from its echo; every shell drops them.
    line = f'stty raw -echo -iexten cs8 && echo macd-terminal""-is-raw && {command}'
    if terminal == "exec":
        return RawTerminal(link.open_channel(line, terminal=True))
    return RawTerminal(link.open_channel("", terminal=True), typed=f" {line}\n".encode())


class RawTerminal:
    """A Channel (see macd/ssh/session.py) that sends nothing before the terminal is raw.

    typed: what is typed once the login shell has said something, for a host that gives no more.
    """

    def __init__(self, channel: Channel, typed: bytes = b"") -> None:
        self._channel = channel
        self._typed = typed
        self._before = bytearray()
        self._raw = threading.Event()

    def send(self, data: bytes) -> None:
        """Hand over all of `data`, once the terminal is raw. Raises ContactLostError."""
        self._raw.wait()
        if _RAW not in self._before:
            raise ContactLostError("the terminal ended before it was raw")
        self._channel.send(quote(data))

    def recv(self, limit: int) -> bytes:
        """Between 1 and `limit` bytes; b"" once it is closed. Raises ContactLostError."""
        try:
            data = self._channel.recv(limit)
            if data and self._typed:
                typed, self._typed = self._typed, b""
                self._channel.send(typed)
        except BaseException:
            self._raw.set()
            raise
        if not self._raw.is_set():
            self._before += data
            if _RAW in self._before or not data:
                self._raw.set()
            else:
                del self._before[:-_KEPT]
        return data

    def stderr(self) -> bytes:
        """What came beside the terminal, and what came before it was raw."""
        return self._channel.stderr() + bytes(self._before).replace(_RAW, b"")

    def exit_status(self) -> int | None:
        """The program's exit status, or None while it runs or when it is unknown."""
        return self._channel.exit_status()

    def shutdown_write(self) -> None:
        """Nothing: a terminal has no end of input."""

    def close(self) -> None:
        """Hang up. Never raises."""
        self._raw.set()
        self._channel.close()
