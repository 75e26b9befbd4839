"""A channel made of an ssh process: what is known at its end."""

from __future__ import annotations

import subprocess
from typing import Any

from macd.ssh.openssh import Channel


def channel_of(script: str, link: Any = None) -> Channel:
    """A channel to what a shell does in place of ssh."""
    pipe = subprocess.PIPE
    argv = ["/bin/sh", "-c", script]
    return Channel(link, subprocess.Popen(argv, bufsize=0, stdin=pipe, stdout=pipe, stderr=pipe))


def test_the_last_words_have_come_when_the_output_is_over() -> None:
    """The cause of a failure is read from them."""
    channel = channel_of("(sleep 0.3; echo a terminal is required >&2) >&- & exit 1")
    assert channel.recv(100) == b""
    assert channel.exit_status() == 1
    assert channel.stderr() == b"a terminal is required\n"
    channel.close()
