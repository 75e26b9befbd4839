"""What pip is told of an index and what is told of pip: no password in either."""

from __future__ import annotations

import os

import pytest

from macd.host.store import package_index

DOWN = (
    "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(<x>: Failed"
    " to establish a new connection: [Errno 111] Connection refused')': /simple/tiny/\n"
    "ERROR: Could not find a version that satisfies the requirement tiny==1.0 (from versions:"
    " none)\nERROR: No matching distribution found for tiny==1.0\n"
)


def test_a_named_index_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://elsewhere.example/simple")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    known = package_index.settings(True, "https://packages.example/simple")
    assert known["PIP_INDEX_URL"] == "https://packages.example/simple"
    assert known["PIP_CONFIG_FILE"] == os.devnull
    assert known["HTTPS_PROXY"] == "http://proxy.example:3128"
    assert "PIP_EXTRA_INDEX_URL" not in known
    assert "PIP_TRUSTED_HOST" not in known


def test_without_a_name_the_hosts_own_settings_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://host.example/simple")
    known = package_index.settings(True, "")
    assert known["PIP_INDEX_URL"] == "https://host.example/simple"
    assert "PIP_CONFIG_FILE" not in known
    assert "PIP_INDEX_URL" not in package_index.settings(False, "")


def test_plain_http_is_trusted_for_that_host_and_port_only() -> None:
    known = package_index.settings(True, "http://packages.example:8080/simple")
    assert known["PIP_TRUSTED_HOST"] == "packages.example:8080"
    assert "PIP_TRUSTED_HOST" not in package_index.settings(True, "http://127.0.0.1:8080/simple")


def test_each_failure_has_its_sentence_and_none_a_password() -> None:
    error = package_index.failure(DOWN, index=True)
    assert (error.kind, error.live) == ("refused", "unchanged")
    assert "did not reach" in error.what
    assert "111" in error.why
    lacking = "\n".join(DOWN.splitlines()[1:])
    assert "has no wheel of tiny==1.0" in package_index.failure(lacking, index=True).what
    secret = "ERROR: HTTP error 401 while getting https://user:hunter2@packages.example/x.whl"
    error = package_index.failure(secret, index=True)
    assert "refuses the host (401)" in error.what
    assert "hunter2" not in error.why
    assert "packages.example/x.whl" in error.why
    assert "index" not in package_index.failure(DOWN, index=False).what


# Recorded from pip 25.3; tests/local/test_index_ways.py has a pip say most of it.
SAYS = {
    "ValueError: check_hostname requires server_hostname": "named by its IP address",
    "ProxyError('Cannot connect to proxy.', OSError('Tunnel connection failed: 407 Proxy": "login",
    "OSError: Missing dependencies for SOCKS support.": "SOCKS",
    "Could not fetch URL http://h/simple/x/: 401 Client Error: Unauthorized - skipping": "(401)",
    "Could not fetch URL http://h/x/: (Caused by ResponseError('too many 503 error responses')) "
    "- skipping": "answered 503",
}


@pytest.mark.parametrize("words", SAYS)
def test_what_pip_says_only_in_its_log_counts_too(words: str) -> None:
    lacking = "ERROR: No matching distribution found for tiny==1.0\n"
    error = package_index.failure(lacking, index=True, log=f"2026-11-29T20:30:12,174 {words}\n")
    if words.startswith("Could not fetch"):
        assert SAYS[words] in error.what
    assert SAYS[words] in package_index.failure(f"{words}\n{lacking}", index=True).what
