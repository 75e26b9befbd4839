"""The daemon's control socket: one JSON line asks, one JSON line answers, then it closes."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from macd.errors import MacdError

Answer = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


def ask(control: Path, request: dict[str, Any], *, timeout: float = 30.0) -> dict[str, Any]:
    """Ask the daemon; raises MacdError when it refuses or can't be reached."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
            link.settimeout(timeout)
            link.connect(str(control))
            link.sendall(json.dumps(request).encode() + b"\n")
            with link.makefile("rb") as stream:
                answer: dict[str, Any] = json.loads(stream.readline())
    except (OSError, ValueError) as error:
        raise MacdError(
            "the lab's daemon doesn't answer",
            why=f"{control}: {error or type(error).__name__}",
            hint="invoke lab.down, then invoke lab.up",
        ) from error
    if "error" in answer:
        raise MacdError(f"the lab refuses: {answer['error']}", hint="invoke lab.status")
    return answer


async def listen(control: Path, answer: Answer) -> asyncio.Server:
    """Serve the control socket; what `answer` raises as ValueError is told to the asker."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            reply = await answer(json.loads(await reader.readline()))
        except (MacdError, ValueError, KeyError, TypeError, OSError) as error:
            reply = {"error": str(error)}
        try:
            writer.write(json.dumps(reply).encode() + b"\n")
            await writer.drain()
        except OSError:
            pass  # the asker gave up
        finally:
            writer.close()

    return await asyncio.start_unix_server(serve, path=control)
