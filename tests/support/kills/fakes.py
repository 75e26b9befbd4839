"""What a pretended host has in place of systemd and of the service: a script and an HTTP server."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import socket
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SYSTEMCTL = """#!/bin/sh
# $1 is --user
exec 9>"$TOP/sd.lock"; flock 9
[ "$GENERATION" = "$(cat "$TOP/generation")" ] || exit 0  # from a host that was put back since
units=$HOME/.config/systemd/user
cd "$TOP/sd"
end() {  # whoever asked dies at the n-th change, before it took effect or after
    [ "$asked $1" != "$ENDED_AT" ] || { kill -KILL "$ASKER"; exit 0; }
}
case $2 in
daemon-reload|restart|stop)
    read asked <"$TOP/asked"; asked=$((asked + 1)); echo $asked >"$TOP/asked"
    end before ;;
esac
case $2 in
show) [ "$3" = macd-analysis.service ] && cat show || echo LoadState=not-found ;;
daemon-reload)
    rm -f loaded
    [ ! -e "$units/macd-analysis.service" ] || cp "$units/macd-analysis.service" loaded ;;
restart)
    read n <count; n=$((n + 1)); echo $n >count
    [ -e loaded ] || cp "$units/macd-analysis.service" loaded
    cp loaded running.unit; cp "$TOP/app/.env" running.env
    now=$(readlink "$TOP/app/current"); echo "${now#releases/} $n" >running
    printf 'LoadState=loaded\\nActiveState=active\\nSubState=running\\nMainPID=%s\\n' $n >show.new
    printf 'InvocationID=i%s\\nNRestarts=0\\nResult=success\\n' $n >>show.new
    mv show.new show ;;
stop)
    printf 'LoadState=loaded\\nActiveState=inactive\\nMainPID=0\\n' >show; rm -f running ;;
esac
end after
"""
HANDED_OVER = """#!/bin/sh
# in place of Python: the runner is begun by the test, as a step of its own
cd "$TOP/app/state/activations"
echo '{"at": 0, "state": "handed over"}' >>"$(ls | grep jsonl | sort -n | tail -1)"
"""


@contextmanager
def health(top: Path) -> Iterator[None]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                release, pid = (top / "sd/running").read_text().split()
                raw = (top / "app/releases" / release / "manifest.json").read_bytes()
            except (OSError, ValueError):
                self.send_error(503)
                return
            good = json.loads(raw)["details"]["variant"] != "bad"
            answer = {
                "status": "ok",
                "release": release,
                "manifest_sha256": hashlib.sha256(raw).hexdigest(),
                "pid": int(pid),
                "golden": {"ok": good, "detail": ""},
            }
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *words: object) -> None:
            pass

        def address_string(self) -> str:
            return "here"

    class Server(http.server.HTTPServer):
        address_family = socket.AF_UNIX

        def server_bind(self) -> None:
            self.socket.bind(str(self.server_address))
            self.server_name, self.server_port = "here", 0

    server = Server(str(top / "h.sock"), Handler)  # type: ignore[arg-type]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


_PIP = """
import sys, zipfile
from pathlib import Path
house = Path(sys.argv[sys.argv.index("--find-links") + 1])
[site] = Path(sys.prefix, "lib").glob("python*/site-packages")
for wheel in house.glob("tiny-*.whl"):
    zipfile.ZipFile(wheel).extractall(site)
"""


def packages() -> tuple[bytes, dict[str, bytes]]:
    """lock.json of a tiny package, and its wheels: pip's is quick, and only unpacks the other."""
    wheels = {"pip": {"pip/__main__.py": _PIP}, "tiny": {"tiny.py": "", "tiny/data.py": ""}}
    listed, found = [], {}
    for name, members in wheels.items():
        held = io.BytesIO()
        with zipfile.ZipFile(held, "w") as archive:
            for path, text in members.items():
                archive.writestr(zipfile.ZipInfo(path), text)
        file, body = f"{name}-1.0-py3-none-any.whl", held.getvalue()
        found[f"wheels/{file}"] = body
        sha256 = hashlib.sha256(body).hexdigest()
        listed.append(
            {"name": name, "version": "1.0", "file": file, "size": len(body), "sha256": sha256}
        )
    lock = {"platform": "any", "python": "3", "wheels": listed}
    return json.dumps(lock).encode() + b"\n", found
