"""Provisioning several hosts: what became of each is shown, and no more than that is promised."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from macd.cli import provision
from macd.deploy.fleet import Results
from macd.deploy.provision import Adoption, Change, Provisioned
from macd.errors import ContactLostError, ExitCode, MacdError

NEW = (Change("file", "service.json", "created"),)


def on(host: str, *, changed: bool = True, lacks: bool = False) -> Provisioned:
    missing = [{"name": "ssh-keygen", "package": "openssh-client", "needed": True}] if lacks else []
    return Provisioned(host, f"/opt/{host}", NEW if changed else (), missing)


LOOKED = Results(
    {"a": on("a"), "b": on("b", changed=False), "c": on("c"), "d": on("d"), "e": on("e")},
    {"f": MacdError("f is away")},
)


def test_what_was_only_looked_at_is_not_told_as_done(capsys: pytest.CaptureFixture[str]) -> None:
    ended = Results({"a": on("a")}, {"c": MacdError("c: disk full")}, not_started=["d"], left=["e"])
    results = provision._together(LOOKED, ended)
    assert list(results.done) == ["a", "b"]
    assert list(results.failed) == ["f", "c"]
    provision._emit(results, dry_run=False)
    document = json.loads(capsys.readouterr().out)
    assert [host["host"] for host in document["hosts"]] == ["a", "b"]
    assert document["away"]["c"]["error"]["what"] == "c: disk full"
    assert (document["untouched"], document["left"]) == (["d"], ["e"])
    provision._show(results, " --env staging", would=False)
    shown = capsys.readouterr()
    assert "d: untouched" in shown.out
    assert "c  /opt/c" not in shown.out
    assert "✗ not waited for: e" in shown.err
    assert "invoke provision --env staging again" in shown.err


def test_the_options_that_agree_are_those_that_work() -> None:
    by_hand = replace(on("a"), adopts=Adoption((), (), (), asks=True))
    adopted = replace(on("a"), adopts=Adoption((), (), (), asks=False))
    assert provision._agreeing(Results({"a": by_hand, "b": on("b")}, {}), adopt=False) == (
        "--adopt --yes"
    )
    assert provision._agreeing(Results({"a": adopted}, {}), adopt=False) == "--yes"
    assert provision._agreeing(Results({"a": on("a")}, {}), adopt=True) == "--adopt --yes"


@pytest.mark.parametrize(
    ("results", "agreed", "code"),
    [
        (Results({"a": on("a")}, {}), True, ExitCode.DONE),
        (Results({"a": on("a")}, {}), False, ExitCode.FAILED),
        (Results({"a": on("a", lacks=True)}, {}), True, ExitCode.FAILED),
        (Results({"a": on("a")}, {"b": ContactLostError("gone")}), True, ExitCode.CONTACT_LOST),
        (Results({"a": on("a")}, {}, not_started=["b"]), True, ExitCode.INTERRUPTED),
        (Results({"a": on("a")}, {}, left=["b"]), True, ExitCode.CONTACT_LOST),
    ],
)
def test_the_exit_code(results: Results[Provisioned], agreed: bool, code: ExitCode) -> None:
    assert provision._exit_code(results, agreed=agreed) == code
