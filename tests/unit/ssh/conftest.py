"""Agents as real processes on this machine: everything of a session but SSH."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from macd.ssh import archive
from macd.ssh.session import Session
from tests.support.pipe_channel import PipeChannel

StartAgent = Callable[..., Session]


@pytest.fixture
def start_agent() -> Iterator[StartAgent]:
    """Start an agent; keywords as PipeChannel's, and `wrap` for a channel around it."""
    with ExitStack() as stack:

        def start(
            python: str = sys.executable,
            *,
            wrap: Callable[[PipeChannel], Any] = lambda channel: channel,
            start_seconds: float = 30.0,
            become: str = "",
            **options: Any,
        ) -> Session:
            channel = PipeChannel(archive.command(python, become=become), **options)
            stack.callback(channel.close)
            session = Session(
                wrap(channel),
                name="here",
                python=python,
                start_seconds=start_seconds,
                sudo_login="joe" if become else "",
            )
            return stack.enter_context(session)

        yield start


@pytest.fixture
def agent(start_agent: StartAgent) -> Session:
    return start_agent()
