"""What pip is told of an index and what is told of pip: no password in either."""

from __future__ import annotations

import os

import pytest

from macd.host.store import runtimes

DOWN = (
    "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(<x>: Failed"
    " to establish a new connection: [Errno 111] Connection refused')': /simple/tiny/\n"
    "ERROR: Could not find a version that satisfies the requirement tiny==1.0 (from versions:"
    " none)\nERROR: No matching distribution found for tiny==1.0\n"
)


def test_a_named_index_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://elsewhere.example/simple")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    known = runtimes.index_settings(True, "https://packages.example/simple")
    assert known["PIP_INDEX_URL"] == "https://packages.example/simple"
    assert known["PIP_CONFIG_FILE"] == os.devnull
    assert known["HTTPS_PROXY"] == "http://proxy.example:3128"
    assert "PIP_EXTRA_INDEX_URL" not in known
    assert "PIP_TRUSTED_HOST" not in known


def test_without_a_name_the_hosts_own_settings_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://host.example/simple")
    known = runtimes.index_settings(True, "")
    assert known["PIP_INDEX_URL"] == "https://host.example/simple"
    assert "PIP_CONFIG_FILE" not in known
    assert "PIP_INDEX_URL" not in runtimes.index_settings(False, "")


def test_plain_http_is_trusted_for_that_host_and_port_only() -> None:
    known = runtimes.index_settings(True, "http://packages.example:8080/simple")
    assert known["PIP_TRUSTED_HOST"] == "packages.example:8080"
    assert "PIP_TRUSTED_HOST" not in runtimes.index_settings(True, "http://127.0.0.1:8080/simple")


def test_each_failure_has_its_sentence_and_none_a_password() -> None:
    told = runtimes.index_failure(DOWN, index=True)
    assert (told.kind, told.live) == ("refused", "unchanged")
    assert "did not reach" in told.what
    assert "111" in told.why
    lacking = "\n".join(DOWN.splitlines()[1:])
    assert "has no wheel of tiny==1.0" in runtimes.index_failure(lacking, index=True).what
    secret = "ERROR: HTTP error 401 while getting https://user:hunter2@packages.example/x.whl"
    told = runtimes.index_failure(secret, index=True)
    assert "answered 401" in told.what
    assert "hunter2" not in told.why
    assert "packages.example/x.whl" in told.why
    assert "index" not in runtimes.index_failure(DOWN, index=False).what
