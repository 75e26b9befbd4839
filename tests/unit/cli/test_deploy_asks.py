"""What `invoke deploy` asks before it begins, and when there is nothing to ask about."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from macd.cli import deploy
from macd.deploy.plan import Plan, Problem
from macd.errors import ExitCode
from macd.ssh.refusals import UnreachableError


@pytest.mark.parametrize("restart", [False, True])
def test_where_nobody_can_be_reached_nothing_is_asked(
    monkeypatch: pytest.MonkeyPatch, *, restart: bool
) -> None:
    def asked(*_: Any, **__: Any) -> bool:
        raise AssertionError

    monkeypatch.setattr(deploy, "confirm", asked)
    gone = UnreachableError("a is away", hop="a", reason="timeout", why="", hint="")
    looked = deploy._Preview([], {"a": gone, "b": gone}, cast("Any", SimpleNamespace(id="r1")))
    how = deploy._How("", dry=False, skip=True, restart=restart, json=False)
    assert deploy._before(looked, how) == ExitCode.CONTACT_LOST


def test_what_stands_in_the_way_comes_before_the_agreement(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(deploy, "confirm", lambda *_, **__: False)
    bare = Problem("the host is not provisioned", "invoke provision")
    for problems, first in (((bare,), "invoke provision\n      then add --yes"), ((), "add --yes")):
        plan = Plan("a", None, "r1", steps=("send",), problems=problems)
        looked = deploy._Preview([plan], {}, cast("Any", SimpleNamespace(id="r1")))
        how = deploy._How("", dry=False, skip=False, restart=False, json=False)
        assert deploy._before(looked, how) == ExitCode.FAILED
        assert f"nothing was changed\n  do: {first}" in capsys.readouterr().out
