"""The loop on the host: read a request, run the operation it names, answer; end when stdin ends.

Requests are answered in their order, so a client may send many without waiting. Operations are
plain functions with JSON or bytes in and out. Two tables name them. A module is imported with the
first request for one of its operations.
"""

from __future__ import annotations

import errno
import importlib
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, BinaryIO

from macd.host.failure import HostError, PeerGoneError
from macd.host.rpc import frames

# Operation -> its function in macd.host.
OPERATIONS = {
    "ping": "rpc.agent.ping",
    "facts": "rpc.facts.facts",
    "read": "rpc.files.read",
    "write": "rpc.files.write",
    "blobs_missing": "rpc.blobs.missing",
    "log_files": "rpc.logs.log_files",
    "log_read": "rpc.logs.log_read",
    "log_hashes": "rpc.logs.log_hashes",
    "unit_log": "rpc.logs.unit_log",
    "lock": "deploy.locks.lock",
    "stage": "deploy.operations.stage",
    "activate": "deploy.operations.activate",
    "confirm": "deploy.operations.confirm",
    "follow": "deploy.operations.follow",
    "recover": "deploy.operations.recover",
    "deploy_facts": "deploy.status.deploy_facts",
    "provision": "deploy.provision.provision",
    "provision_undo": "deploy.adopt.undo",
    "checkup": "deploy.status.checkup",
    "survey": "survey.survey",
    "replay": "deploy.status.replay",
    "notify_test": "alerts.look.send_test",
    "set_flag": "flag.flag.set_flag",
    "gate_note": "flag.evidence.gate_note",
    "gate_newest": "flag.evidence.gate_newest",
    "stacking": "flag.guard_config.stacking",
    "guard_status": "flag.guard_config.guard_status",
    "job_tree": "jobs.operations.job_tree",
    "job_start": "jobs.operations.job_start",
    "job_cancel": "jobs.operations.job_cancel",
    "job_status": "jobs.operations.job_status",
    "job_list": "jobs.operations.job_list",
    "job_follow": "jobs.operations.job_follow",
    "job_files": "jobs.operations.job_files",
    "node_look": "jobs.node.node_look",
    "node_listen": "jobs.node.node_listen",
    "node_reach": "jobs.node.node_reach",
    "job_schedule": "jobs.schedule.job_schedule",
    "job_schedule_set": "jobs.schedule.job_schedule_set",
    "job_schedule_start": "jobs.schedule.job_schedule_start",
    "job_schedule_remove": "jobs.schedule.job_schedule_remove",
}
# Those that stream, or that must notice that the client left; their first argument is the `Peer`.
STREAMS = {"run": "commands.run", "blobs_put": "rpc.blobs.put"}

Message = dict[str, Any]
_QUEUED_FRAMES = 32  # of at most MAX_PAYLOAD each; then the client is made to wait
_TRACEBACK_LINES = 12


def serve(stdin: BinaryIO, tag: bytes, copy: str) -> int:
    """Answer requests until stdin ends. Takes over the process's stdin and stdout.

    copy: the SHA-256 of the archive that lies on this host, "" for none; the client remembers it.
    """
    peer = Peer(stdin, _take_over_stdio(), tag)
    hello = {"pid": os.getpid(), "python": list(sys.version_info[:3]), "copy": copy}
    peer.send({"hello": hello})
    while True:
        try:
            request = peer.next_request()
            if request is None:
                return 0
            _answer(peer, request)
        except (PeerGoneError, BrokenPipeError):
            return 0


class Peer:
    """The client as an operation sees it: data frames in, progress out, and whether it is there."""

    def __init__(self, stdin: BinaryIO, out: int, tag: bytes) -> None:
        self._stdin = stdin
        self._out = out
        self._tag = tag
        self._inbox: queue.Queue[Message | None] = queue.Queue(_QUEUED_FRAMES)
        self._current: Any = None
        self._pushed_back: Message | None = None
        self.waited = 0.0  # seconds in which the running operation waited for the client's data
        self.gone = threading.Event()
        threading.Thread(target=self._receive, name="receive", daemon=True).start()

    def _receive(self) -> None:
        try:
            while True:
                message, _ = frames.read_frame(self._stdin.read, self._tag)
                message["$received"] = time.time()
                self._inbox.put(message)
        except frames.EndOfStreamError:
            pass
        except Exception as error:  # whatever it was, the stream is useless now
            sys.stderr.write(f"macd agent: {error!r}\n")
        finally:
            self.gone.set()
            self._inbox.put(None)

    def _next(self) -> Message:
        message, self._pushed_back = self._pushed_back, None
        if message is None:
            message = self._inbox.get()
        if message is None:
            self._inbox.put(None)
            raise PeerGoneError("the client closed the channel")
        return message

    def next_request(self) -> Message | None:
        """The next request, or None at the end. Data left over from a failed stream is dropped."""
        while True:
            try:
                message = self._next()
            except PeerGoneError:
                return None
            if "op" in message:
                self._current, self.waited = message.get("id"), 0.0
                return message

    def receive(self) -> Message:
        """The next data frame of the running operation. Raises PeerGoneError."""
        since = time.monotonic()
        message = self._next()
        self.waited += time.monotonic() - since
        if "op" in message or message.get("id") != self._current:
            self._pushed_back = message
            raise HostError("the client stopped sending in the middle of a stream")
        return message

    def progress(self, value: Any) -> None:
        """Send the client something before the result is there."""
        self.send({"id": self._current, "progress": value})

    def send(self, message: Message) -> None:
        """Encode and write one message."""
        self.write(self.encode(message))

    def encode(self, message: Message) -> bytes:
        """The frame for `message`. Raises FrameError (too large), TypeError (not JSON or bytes)."""
        return frames.encode(self._tag, message)

    def write(self, frame: bytes) -> None:
        """Write one frame. Raises BrokenPipeError when nobody reads any more."""
        view = memoryview(frame)
        while view:
            try:
                view = view[os.write(self._out, view) :]
            except OSError as error:
                if error.errno != errno.EIO:  # a terminal that was hung up
                    raise
                raise BrokenPipeError(*error.args) from error


def _answer(peer: Peer, request: Message) -> None:
    answer: Message = {"id": request.get("id")}
    try:
        answer["result"] = _run(peer, request.get("op"), request.get("args") or {})
        answer["clock"] = [request["$received"], time.time()]
        if peer.waited:
            answer["waited"] = peer.waited
        frame = peer.encode(answer)
    except (PeerGoneError, BrokenPipeError):
        raise
    except Exception as error:
        clock = [request["$received"], time.time()]
        frame = peer.encode({"id": request.get("id"), "error": _describe(error), "clock": clock})
    peer.write(frame)


def _run(peer: Peer, name: Any, arguments: dict[str, Any]) -> Any:
    if name in STREAMS:
        return _function(STREAMS[name])(peer, **arguments)
    if name in OPERATIONS:
        return _function(OPERATIONS[name])(**arguments)
    raise HostError(f"the agent has no operation {name!r}", kind="unknown operation")


def _function(path: str) -> Callable[..., Any]:
    module, _, function = path.rpartition(".")
    operation: Callable[..., Any] = getattr(
        importlib.import_module(f"macd.host.{module}"), function
    )
    return operation


def _describe(error: Exception) -> Message:
    description: Message = {"type": type(error).__name__, "message": str(error)}
    if isinstance(error, HostError):
        fields = ("what", "why", "hint", "live", "kind")
        description.update({field: getattr(error, field) for field in fields})
        return description
    if isinstance(error, OSError):
        description.update(errno=error.errno, path=_text(error.filename))
        description["message"] = error.strerror or description["message"]
    lines = traceback.format_exception(type(error), error, error.__traceback__)
    description["traceback"] = "".join(lines[-_TRACEBACK_LINES:])
    return description


def _text(path: Any) -> str:
    if path is None:
        return ""
    return os.fsdecode(path) if isinstance(path, (str, bytes)) else str(path)


def ping() -> dict[str, int]:
    """A round trip; the answer's clock gives the host's time."""
    return {"pid": os.getpid()}


def _take_over_stdio() -> int:
    """Reserve the real stdout for frames: everybody else's becomes stderr, and stdin becomes empty.

    So neither a stray print nor a child with our descriptors breaks the framing or eats a request.
    In a terminal stderr would do so as well: it is dropped. Being hung up ends stdin there.
    """
    out = os.dup(1)
    if os.isatty(2):
        signal.signal(signal.SIGHUP, lambda *_: None)  # a handler, for children don't inherit it
        dropped = os.open(os.devnull, os.O_WRONLY)
        os.dup2(dropped, 2)
        os.close(dropped)
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.stdout = sys.stderr
    return out
