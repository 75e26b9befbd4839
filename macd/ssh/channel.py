"""The port everything in this room talks through: one byte stream to one program, and its end."""

from __future__ import annotations

from typing import Protocol


class Channel(Protocol):
    """What an SSH exec channel offers; any other that offers the same will do.

    `send` and `recv` may be used from two different threads. All raise ContactLostError once the
    link is dead, within the time its keepalives allow.
    """

    def send(self, data: bytes) -> None:
        """Hand over all of `data`, waiting for room in the window."""

    def recv(self, limit: int) -> bytes:
        """Between 1 and `limit` bytes of the program's stdout; b"" once it is closed."""

    def stderr(self) -> bytes:
        """The last 64 KiB of what has arrived on stderr; never waits, takes nothing away."""

    def exit_status(self) -> int | None:
        """The program's exit status, or None while it runs or when it is unknown."""

    def shutdown_write(self) -> None:
        """Close the program's stdin."""

    def close(self) -> None:
        """End the channel. Never raises."""
