"""A host without IPv4: pinned, provisioned, deployed to, asked and heard, by IPv6 alone."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from tests.hosts.test_deploy_hosts import APP, MORE, TASKS, UNIT, Bench, bench
from tests.support import small_releases
from tests.support.hosts import rootfs
from tests.support.hosts.fleet import Hosts, booted

__all__ = ["bench"]
pytestmark = pytest.mark.hosts

# A server on the host's own ::1 that stores the message it was sent.
RECEIVER = """
import http.server, socket
class V6(http.server.HTTPServer):
    address_family = socket.AF_INET6
class Takes(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        with open("/run/message", "wb") as file:
            file.write(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()
V6(("::1", 8099), Takes).serve_forever()
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """prod alone, and of this file: nobody else reaches it afterwards."""
    root = tmp_path_factory.mktemp("ipv6") / "project"
    with booted(rootfs.cache_directory(), root, names=["prod"]) as made:
        yield made


@pytest.fixture(scope="module")
def six(hosts: Hosts, bench: Bench) -> Bench:
    """An inventory `six` of prod by its IPv6 address, which has no IPv4, not even 127.0.0.1."""
    number = int(hosts.prod.machine.name.split("-")[1])
    ours, theirs = f"fd18:{number:x}::5", f"fd18:{number:x}::6"
    ip("address", "add", f"{ours}/64", "dev", f"macd{number}p", "nodad")
    name = hosts.prod.machine.name
    ip("-n", name, "address", "add", f"{theirs}/64", "dev", "host0", "nodad")
    for device in ("host0", "lo"):
        ip("-n", name, "-4", "address", "flush", "dev", device)
    (hosts.root / "tasks.py").write_text(
        TASKS.replace("import deploy,", "import host, deploy,").replace(
            "deploy.plan,", "host.trust, deploy.plan,"
        )
    )
    reached = f"ssh: '{theirs}', port: 22222, user: root, identity: ../id_ed25519"
    webhook = "alerts: {notify_url: 'http://[::1]:8099/x'}\n"
    service = MORE.replace("service: {", "service: {health: '[::1]:8791', ")
    (hosts.root / "inventory" / "six.yml").write_text(
        f"known_hosts: ../known_six\nhosts:\n  prod: {{role: serve, env: prod, {reached}, "
        f"app_dir: {APP}}}\ntrain: {{profile: demo, require_gpu: false}}\n{webhook}{service}"
    )
    return bench


def test_all_goes_by_ipv6_alone(six: Bench) -> None:
    shown = six.invoke("trust", "prod", "--yes", inventory="six").stdout
    assert "pinned" in shown
    assert "]:22222 ssh-ed25519 " in (six.hosts.root / "known_six").read_text()
    six.invoke("provision", "--yes", inventory="six")
    release = small_releases.make(six.inventory, 701)
    told = six.json("deploy", "--yes", inventory="six")["outcomes"][0]
    assert (told["result"], six.live) == ("committed", release)
    state = six.json("status", inventory="six")["hosts"][0]
    assert (state["endpoint"], state["health"]["status"]) == ("[::1]:8791", "ok")
    assert "[::1]:8791" in six.on_prod("ss", "-Hltn")
    six.on_prod("systemd-run", "--quiet", "--unit=takes", "/usr/bin/python3", "-c", RECEIVER)
    try:
        six.on_prod("sh", "-c", "until ss -Hltn | grep -q 8099; do sleep 0.1; done")
        assert (
            "a test message was sent"
            in six.typed("doctor", "--notify-test", inventory="six").stdout
        )
        assert "test" in six.on_prod("cat", "/run/message")
        six.on_prod("systemctl", "start", f"{UNIT.removesuffix('.service')}-alerts.service")
        assert "alerts    none" in six.invoke("status", inventory="six").stdout
    finally:
        six.on_prod("systemctl", "stop", "takes")
