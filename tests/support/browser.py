"""A headless chromium for tests of pages: what it shows, what it complains about, what it fetches.

Spoken to through the DevTools protocol on two pipes (--remote-debugging-pipe): no port, no library.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

LIMIT_S = 120.0
_MOST_TABS = 8  # no test looks at more
_PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# chromium reads commands from descriptor 3 and answers on 4
_LAUNCH = "import os,sys; os.dup2(int(sys.argv[1]),3); os.dup2(int(sys.argv[2]),4); "
_LAUNCH += "os.execvp(sys.argv[3], sys.argv[3:])"
_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # tests run as root; only our own pages are opened
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    # A tab behind another is as fast as the one in front, also on a busy machine.
    "--disable-renderer-backgrounding",
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--remote-debugging-pipe",
)


@dataclass
class Opened:
    """A page that was opened: what it complained about and every address it asked for."""

    browser: Browser
    session: str
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.browser.call(
            "Runtime.evaluate",
            self.session,
            expression=script,
            returnByValue=True,
            awaitPromise=True,
        )
        if "exceptionDetails" in answer:
            raise AssertionError(f"{script}: {answer['exceptionDetails']['text']}")
        return answer["result"].get("value")

    def unfold(self) -> Opened:
        """Open what is folded, for a look at all of it."""
        self.run("document.querySelectorAll('details.fold').forEach(d => { d.open = true; })")
        return self

    def screenshot(self, path: Path) -> Path:
        """The whole page, to its end, as PNG."""
        answer = self.browser.call(
            "Page.captureScreenshot", self.session, format="png", captureBeyondViewport=True
        )
        path.write_bytes(base64.b64decode(answer["data"]))
        return path

    def pdf(self, path: Path) -> Path:
        """The page as it is printed."""
        answer = self.browser.call("Page.printToPDF", self.session, printBackground=False)
        path.write_bytes(base64.b64decode(answer["data"]))
        return path


class Browser:
    """A running chromium; `open` gives a page of a width, light or dark."""

    def __init__(self, process: subprocess.Popen[bytes], commands: int, answers: int) -> None:
        self._process, self._commands, self._answers = process, commands, answers
        self._number, self._rest = 0, b""
        self._pages: dict[str, Opened] = {}
        self._loaded: set[str] = set()
        self._targets: list[str] = []

    def open(
        self,
        url: str,
        *,
        width: int = 1280,
        height: int = 900,
        dark: bool = False,
        scripts: bool = True,
    ) -> Opened:
        """Open an address in a fresh tab and wait until it has loaded. scripts: of the page."""
        while len(self._targets) >= _MOST_TABS:  # each costs memory, and some load themselves anew
            self.call("Target.closeTarget", targetId=self._targets.pop(0))
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._targets.append(target)
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Opened(self, session)
        self._pages[session] = page
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable", session)
        self.call(
            "Emulation.setDeviceMetricsOverride",
            session,
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", session, features=[scheme])
        self.call("Emulation.setScriptExecutionDisabled", session, value=not scripts)
        self._loaded.discard(session)
        self.call("Page.navigate", session, url=url)
        limit = time.monotonic() + LIMIT_S
        while session not in self._loaded:
            self._take(self._next(limit))
        return page

    def call(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        """One command and its answer; events that come in between are recorded."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._commands, data) :]
        limit = time.monotonic() + LIMIT_S
        while True:
            answer = self._next(limit)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']['message']}")
                return dict(answer["result"])
            self._take(answer)

    def _next(self, limit: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            if time.monotonic() > limit:
                raise AssertionError("the browser does not answer")
            try:
                part = os.read(self._answers, 1 << 20)
            except BlockingIOError:
                time.sleep(0.01)
                continue
            if not part:
                raise AssertionError(f"the browser ended with {self._process.wait()}")
            self._rest += part
        whole, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(whole))

    def _take(self, event: dict[str, Any]) -> None:
        page = self._pages.get(event.get("sessionId", ""))
        if page is None:
            return
        params, method = event.get("params", {}), event.get("method")
        if method == "Page.loadEventFired":
            self._loaded.add(page.session)
        elif method == "Network.requestWillBeSent":
            page.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            page.complaints.append(params["exceptionDetails"]["text"])
        elif method == "Runtime.consoleAPICalled":
            page.complaints.append(str([a.get("value") for a in params["args"]]))
        elif method == "Log.entryAdded":
            page.complaints.append(params["entry"]["text"])


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser for the tests of a module; they are skipped, in a line, where there is none.

    In CI nothing may be skipped: there a missing browser fails them.
    """
    program = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    if program is None:
        told = "no chromium here: tests/system-packages.sh installs it on Debian"
        if os.environ.get("CI", "") in ("true", "1"):
            pytest.fail(told)
        pytest.skip(told)
    with contextlib.ExitStack() as stack:
        home = stack.enter_context(_directory())
        ours: list[int] = []
        theirs: list[int] = []
        for at in (0, 1):  # commands go out on the first pipe, answers come in on the second
            ends = os.pipe()
            theirs.append(fcntl.fcntl(ends[at], fcntl.F_DUPFD, 10))
            os.close(ends[at])
            ours.append(ends[1 - at])
        words = [program, *_FLAGS, f"--user-data-dir={home}/profile", "about:blank"]
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _LAUNCH, *map(str, theirs), *words],
            pass_fds=theirs,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": home, "XDG_CONFIG_HOME": home, "XDG_CACHE_HOME": home},
            start_new_session=True,
        )
        for end in theirs:
            os.close(end)
        os.set_blocking(ours[1], False)
        try:
            yield Browser(process, *ours)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for end in ours:
                os.close(end)


def _directory() -> tempfile.TemporaryDirectory[str]:
    """A home for the browser; a child of its may still write while it is removed."""
    return tempfile.TemporaryDirectory(prefix="macd-browser-", ignore_cleanup_errors=True)
