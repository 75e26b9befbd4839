"""The probe of a team's own unit: what is said where its address answers, but not with 2xx."""

from __future__ import annotations

import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from macd.host.deploy.probe import OwnProver
from macd.host.layout import Layout
from macd.host.own import Probe
from macd.host.processes import Kernel
from macd.host.systemd.supervisor import Process, Supervisor


@pytest.mark.parametrize(("status", "blamed"), [(404, True), (302, True), (503, False)])
def test_an_address_that_is_not_there_leads_to_ready(status: int, *, blamed: bool) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/health"
            prover = OwnProver(
                Layout("/nowhere"), Supervisor("user"), "x.service", Probe(http=url), Kernel()
            )
            process = Process("active", "running", os.getpid(), "", 0, "success", "", "")
            said = prover.not_ready(process)
        finally:
            server.shutdown()
    assert f"{url} answers {status}" in said
    assert ("ready: of x.service" in said) == blamed
