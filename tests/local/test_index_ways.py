"""What stands between a host and its package index: told by its true cause, by a real pip.

Small servers on loopback: an index with a certificate of a private CA, a proxy that wants a login.
"""

from __future__ import annotations

import hashlib
import json
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from macd.host.alerts import webhook
from macd.host.failure import HostError
from macd.host.layout import Layout
from macd.host.rpc import blobs
from macd.host.store import package_index, runtimes
from tests.support import small_releases
from tests.support.sweeps import sweep

NOWHERE = "http://127.0.0.1:1"  # nobody listens on port 1
ELSEWHERE = "https://packages.example/simple"

# How the host is set up (its environment, the index), and what must be told.
WAYS = {
    "the proxy wants a login": ({"HTTPS_PROXY": "{proxy_407}"}, ELSEWHERE, "wants a login (407)"),
    "it wants one for http too": (
        {"HTTP_PROXY": "{proxy_407}"}, "http://packages.example/simple", "wants a login (407)",
    ),
    "the proxy forbids it": (
        {"HTTPS_PROXY": "{proxy_403}"}, ELSEWHERE, "let the host to its package index (403)",
    ),
    "the proxy is down": ({"HTTPS_PROXY": NOWHERE}, ELSEWHERE, "did not reach the proxy"),
    "pip's own proxy is down": ({"PIP_PROXY": NOWHERE}, "{tls}", "did not reach the proxy"),
    "TLS to a proxy that has none": (
        {"HTTPS_PROXY": "https{proxy_407}"}, ELSEWHERE, "speaks TLS to a proxy that does not",
    ),
    "an unknown CA": ({}, "{tls}", "does not trust the certificate"),
    "a CA that is trusted": ({"PIP_CERT": "{ca}"}, "{tls}", "has no wheel of tiny==1.0"),
    "a file of CAs that isn't there": ({"PIP_CERT": "/no/ca.pem"}, "{tls}", "is not on the host"),
    "another name": ({"PIP_CERT": "{ca}"}, "{tls_other}", "a certificate for another name"),
    "an old certificate": ({"PIP_CERT": "{ca}"}, "{tls_old}", "is not valid now"),
    "no TLS there": ({}, "https{plain}", "does not speak TLS there"),
    "the index wants a login": ({}, "{index_401}", "package index refuses the host (401)"),
    "nobody there": ({}, f"{NOWHERE}/simple", "did not reach its package index"),
}  # fmt: skip


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def certified(directory: Path, key: ec.EllipticCurvePrivateKey, host: str, days: int) -> Path:
    """A certificate of the CA "ca" with that key, for `host`, until in so many days; its file."""
    mine = ec.generate_private_key(ec.SECP256R1())
    is_ca = host == "ca"
    public = key.public_key() if is_ca else mine.public_key()
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name("ca"), name(host), public, x509.random_serial_number())
        .not_valid_before(now - timedelta(days=9))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(is_ca, None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
    )
    path = directory / f"{host}{days}.pem"
    pem = made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    if not is_ca:
        how = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
        pem += mine.private_bytes(*how, serialization.NoEncryption())
    path.write_bytes(pem)
    return path


class Answers(BaseHTTPRequestHandler):
    """Answers everything with one code, as a proxy or an index."""

    code = 0

    def do_GET(self) -> None:
        self.send_response(self.code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_CONNECT = do_GET

    def log_message(self, *_: object) -> None:
        pass


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The addresses of all servers, by their names in WAYS."""
    directory = tmp_path_factory.mktemp("index")
    (directory / "simple" / "tiny").mkdir(parents=True)
    (directory / "simple" / "tiny" / "index.html").write_text("<!DOCTYPE html><html></html>")
    key = ec.generate_private_key(ec.SECP256R1())
    pems = {
        "tls": ("localhost", 9),
        "tls_other": ("other.example", 9),
        "tls_old": ("localhost", -1),
    }
    index = partial(Quiet, directory=str(directory))
    servers: list[ThreadingHTTPServer] = []

    def serve(handler: object, pem: Path | None = None) -> int:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)  # type: ignore[arg-type]
        if pem is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(pem)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        servers.append(server)
        return int(server.server_port)

    def answering(code: int) -> int:
        return serve(type("Coded", (Answers,), {"code": code}))

    made = {"ca": str(certified(directory, key, "ca", 9))}
    for at, (host, days) in pems.items():
        port = serve(index, certified(directory, key, host, days))
        made[at] = f"https://localhost:{port}/simple"
    for code in (407, 403):
        made[f"proxy_{code}"] = f"http://127.0.0.1:{answering(code)}"
    made["index_401"] = f"http://127.0.0.1:{answering(401)}/simple"
    made["plain"] = f"://localhost:{serve(index)}/simple"
    yield made
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    "way",
    sweep(WAYS, "the proxy wants a login", "an unknown CA", "the index wants a login"),
)
def test_each_way_is_told_by_its_cause(
    way: str, places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment, url, told = WAYS[way]
    for given in (*package_index._PASSED_ON, "PIP_INDEX_URL", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(given, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value.format(**places).replace("httpshttp", "https"))
    pip = small_releases.compiled_pip()
    sha256 = hashlib.sha256(pip.read_bytes()).hexdigest()
    blob = Path(blobs.path_of(str(tmp_path), sha256))
    blob.parent.mkdir(parents=True)
    blob.symlink_to(pip)
    rows = [
        {"name": "pip", "version": "1", "file": pip.name, "sha256": sha256},
        {"name": "tiny", "version": "1.0", "file": "tiny-1.0.whl", "sha256": "0" * 64},
    ]
    raw = json.dumps({"wheels": rows}).encode()
    with pytest.raises(HostError) as error:
        runtimes.install(Layout(str(tmp_path)), raw, [], index=True, index_url=url.format(**places))
    assert told in error.value.what
    assert (error.value.kind, error.value.live) == ("refused", "unchanged")
    assert error.value.hint
    assert list((tmp_path / "runtimes").iterdir()) == []


@pytest.mark.parametrize(
    ("proxy", "at", "trusted", "told"),
    [
        ("{proxy_407}", "", False, "the proxy of this host answered 407: it wants a login"),
        ("{proxy_403}", "", False, "the proxy of this host answered 403"),
        (NOWHERE, "", False, "the address (or the proxy) was not reached: ConnectionRefused"),
        ("", "tls", False, "the certificate of the address is not trusted on this host"),
        ("", "tls_other", True, "the certificate of the address is for another name"),
        ("", "tls_old", True, "the certificate of the address has expired"),
    ],
)
def test_a_webhook_too(
    proxy: str,
    at: str,
    trusted: bool,
    told: str,
    places: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable in package_index._PASSED_ON:
        monkeypatch.delenv(variable, raising=False)
    if proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.format(**places))
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", places["ca"])
    (tmp_path / "state").mkdir()
    address = places.get(at, "https://hooks.example/s3cret")
    (tmp_path / "state" / "notify.json").write_text(json.dumps({"url": address}))
    outcome = webhook.post(Layout(str(tmp_path)), {"text": "macd: x"}).outcome
    assert outcome.startswith(told)
    assert "hooks" not in outcome and "localhost" not in outcome
