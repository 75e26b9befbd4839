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

from tests.support.kills.steps import UNIT

SYSTEMCTL = """#!/bin/sh
# $1 is --user
exec 9>"$TOP/sd.lock"; flock 9
[ "$GENERATION" = "$(cat "$TOP/generation")" ] || exit 0  # from a host that was put back since
units=$HOME/.config/systemd/user
cd "$TOP/sd"
end() {  # whoever asked dies at the n-th change, before it took effect or after
    [ "$asked $1" != "$ENDED_AT" ] || { kill -KILL "$ASKER"; exit 0; }
}
begin() {  # a process of a release of unit $1; of one's own application it is a real one
    read release n <"$1.running"
    if [ -n "$OWN" ]; then
        cd "$TOP/app/releases/$release/source"
        MACD_RELEASE=$release setsid sleep 600 </dev/null >/dev/null 2>&1 9>&- &
        n=$!
        until grep -qs MACD_RELEASE=$release /proc/$n/environ; do sleep 0.001; done
        cd "$TOP/sd"
    fi
    printf 'LoadState=loaded\\nActiveState=active\\nSubState=running\\nMainPID=%s\\n' $n >show.new
    printf 'InvocationID=i%s\\nNRestarts=0\\nResult=success\\n' $n >>show.new
    mv show.new "$1.show"
}
over() {  # the same of its end, which is as $2
    pid=$(sed -n s/MainPID=//p "$1.show")
    case $(readlink "/proc/$pid/cwd") in "$TOP"/*) kill -KILL "$pid" ;; esac
    printf "LoadState=loaded\\nActiveState=$2\\nMainPID=0\\n" >"$1.show"
}
case $2 in
daemon-reload|restart|stop)
    read asked <"$TOP/asked"; asked=$((asked + 1)); echo $asked >"$TOP/asked"
    end before ;;
esac
case $2 in
show) [ -e "$3.show" ] && cat "$3.show" || echo LoadState=not-found ;;
daemon-reload)
    rm -f *.loaded
    for path in "$units"/macd-*.service; do
        [ ! -e "$path" ] || cp "$path" "${path##*/}.loaded"
    done ;;
restart)
    read n <count; n=$((n + 1)); echo $n >count
    [ -e "$3.loaded" ] || cp "$units/$3" "$3.loaded"
    over "$3" failed
    cp "$3.loaded" "$3.unit"; cp "$TOP/app/.env" "$3.env"
    now=$(readlink "$TOP/app/current"); now=${now#releases/}
    if [ -e "$TOP/app/releases/$now/source/no-$3" ]; then
        failed=1
    else
        echo "$now $n" >"$3.running"
        begin "$3"
    fi ;;
again) for show in *.show; do grep -qx MainPID=0 $show || begin "${show%.show}"; done ;;
stop|disable)
    for unit; do
        case $unit in *.service) over "$unit" inactive; rm -f "$unit.running" ;; esac
    done ;;
esac
end after
exit ${failed:-0}
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
                release, pid = (top / f"sd/{UNIT}.running").read_text().split()
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
