"""Requests lost over 20 deploys while a client asks all the time, and how fast a bad one is undone.

    python -m benchmarks.cutover [--deploys 20] [--json FILE]

Needs root on Debian: it boots the test suite's real systemd hosts. What serves is not
macd.app.service but the test suite's small HTTP service behind a systemd socket, which starts
at once: a real one takes its models' time to start, and requests wait that much longer in the
same socket. What switches, notices and goes back is the product. Ends with 1 when a request failed.

A release that hangs or is never ready shows itself by time alone: it is noticed after the time
that health is given, 8 s here (soak.ready_s in an inventory).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from tests.support.hosts import rootfs
from tests.support.hosts.fleet import booted
from tests.support.hosts.host_app import APP, ENDPOINT, HostApp, host_app_on

CLIENT = """
import json, os, socket, sys, time
asked, failed, longest, seen = 0, [], 0.0, {}
while not os.path.exists(sys.argv[2]):
    began = time.monotonic()
    try:
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(20)
        s.connect(sys.argv[1])
        s.sendall(b"GET /healthz HTTP/1.0\\r\\n\\r\\n")
        data = b""
        while True:
            piece = s.recv(65536)
            if not piece:
                break
            data += piece
        s.close()
        release = json.loads(data.partition(b"\\r\\n\\r\\n")[2])["release"]
        seen[release] = seen.get(release, 0) + 1
    except Exception as error:
        failed.append(repr(error))
    asked += 1
    longest = max(longest, time.monotonic() - began)
    time.sleep(0.002)
print(json.dumps({"asked": asked, "failed": failed, "longest": longest, "releases": len(seen)}))
"""
VARIANTS = ("exits", "hangs", "wrong golden", "never ready", "old id", "crashes soon")


def cutover(trial: HostApp, deploys: int) -> dict[str, Any]:
    """Deploy again and again under load; what the client saw and how long each took."""
    stop = f"{APP}/data/stop"
    output: list[str] = []
    client = threading.Thread(
        target=lambda: output.append(trial.on_prod("python3", "-c", CLIENT, ENDPOINT[5:], stop))
    )
    client.start()
    seconds = []
    for _ in range(deploys):
        release = trial.release()
        began = time.monotonic()
        outcome = trial.deploy(release)
        seconds.append(time.monotonic() - began)
        assert outcome == "committed", outcome
    trial.on_prod("touch", stop)
    client.join()
    return {**json.loads(output[0]), "deploys": deploys, "seconds": seconds}


def reverts(trial: HostApp) -> dict[str, dict[str, float]]:
    """Seconds to notice each kind of bad release, and to have the old one answering again."""
    results = {}
    for variant in VARIANTS:
        before = trial.live
        story = trial.story(trial.begin(trial.release(variant), soak_s=2.0))
        at = {event["state"]: event["at"] for event in story}
        assert story[-1]["state"] == "reverted", story[-1]
        assert trial.answers() == trial.live == before
        results[variant] = {
            "noticed": at["reverting"] - at["restarting"],
            "undone": at["reverted"] - at["reverting"],
        }
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--deploys", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        with (
            booted(rootfs.cache_directory(), top / "project") as hosts,
            host_app_on(hosts, top) as on,
        ):
            seen, undone = cutover(on, arguments.deploys), reverts(on)
    print(
        f"{seen['deploys']} deploys under load: {seen['asked']} requests, "
        f"{len(seen['failed'])} failed; longest answer {seen['longest'] * 1000:.0f} ms; "
        f"a deploy took {statistics.median(seen['seconds']):.2f} s (median)"
    )
    for variant, times in undone.items():
        print(
            f"release that {variant}: noticed after {times['noticed']:.2f} s, "
            f"the old one proved again {times['undone']:.2f} s later"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({"cutover": seen, "reverts": undone}, indent=1))
    for why in seen["failed"][:5]:
        print(f"FAILED  {why}")
    return 1 if seen["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
