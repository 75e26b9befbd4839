"""The next command that is named goes on where this one was: same environment, host, inventory."""

from __future__ import annotations

from dataclasses import replace

import pytest
from invoke import Context

from macd.cli import deploy, provision, rollout
from macd.cli.verb import same
from macd.deploy.follow import Outcome
from macd.deploy.plan import Plan, Problem
from macd.deploy.provision import Provisioned, _with_remedy
from macd.deploy.rollout import Result


def test_options_are_said_as_they_were_typed_but_for_the_default_environment() -> None:
    assert same(env="prod", host="", inventory="") == ""
    assert same(env="staging", host="two") == " --env staging --host two"
    assert same(inventory="production", release="a b") == " --inventory production --release 'a b'"


def test_plan_names_the_deploy_of_the_same_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Plan(host="two", live=None, release="r", steps=("send",))
    monkeypatch.setattr(deploy, "_preview", lambda *_: deploy._Preview([made], {}, None))  # type: ignore[arg-type]
    monkeypatch.setattr(deploy, "_candidate", lambda *_: None)
    monkeypatch.setattr("macd.deploy.fleet.hosts_of", lambda *_: [])
    deploy.plan(Context(), env="staging", host="two", release="r", inventory="lab")
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "  next: invoke deploy --env staging --host two --release r --inventory lab"
    deploy.plan(Context())
    assert capsys.readouterr().out.splitlines()[-1] == "  next: invoke deploy"


def test_plan_names_no_deploy_that_would_be_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = Problem("this host is not provisioned", "invoke provision")
    made = Plan(host="two", live=None, release="r", steps=("send",), problems=(refused,))
    monkeypatch.setattr(deploy, "_preview", lambda *_: deploy._Preview([made], {}, None))  # type: ignore[arg-type]
    monkeypatch.setattr(deploy, "_candidate", lambda *_: None)
    deploy.plan(Context())
    assert capsys.readouterr().out.splitlines()[-1] == "    do: invoke provision"


def test_a_confirmation_is_not_waited_for_once_it_was_given(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A host that is asked now and then tells that it waits after it was confirmed."""
    shown = rollout.Progress(quiet=False)
    for kind in ("looking", "awaiting confirmation", "confirmed", "awaiting confirmation"):
        shown(kind, {})
    assert capsys.readouterr().out.count("waiting for a confirmation") == 1


def test_a_revert_names_where_to_look(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(host="two", result="reverted", live=None, release="r")
    rollout.print_end(Result([outcome], []), "deploy", " --env staging")
    output = capsys.readouterr().out
    assert "do: invoke status --env staging; invoke doctor --env staging;" in output


def test_a_rollback_says_what_it_put_back_and_where_the_edits_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    kept = "/etc/systemd/system/m.service.before-rollback-7"
    back = Outcome("two", "committed", "r1", "r1", files=("m.service",), keys=("ML_X",))
    rollout.print_end(Result([replace(back, kept=(kept,))], []), "rollback")
    output = capsys.readouterr().out
    assert "  put back as they were: m.service\n" in output
    assert "  set in .env as they were: ML_X\n" in output
    assert f"the last deploy is kept there: {kept}\n" in output
    rollout.print_end(Result([back], []), "deploy")
    assert "put back" not in capsys.readouterr().out


def test_how_stacking_decides_again_is_said_only_where_it_had(
    capsys: pytest.CaptureFixture[str],
) -> None:
    back = Outcome("two", "committed", "r1", "r1")
    rollout.print_end(Result([back], []), "rollback", " --env staging")
    assert "stacking" not in capsys.readouterr().out
    rollout.print_end(Result([replace(back, shadow="OUR_FLAG=off")], []), "rollback", " --env a")
    output = capsys.readouterr().out
    assert "in shadow (OUR_FLAG=off); to have stacking decide again:\n" in output
    assert "invoke shadow-gate --env a, then invoke enable-stacking --env a\n" in output


def test_a_time_that_is_not_known_is_not_said(capsys: pytest.CaptureFixture[str]) -> None:
    rollout.print_end(Result([Outcome("two", "committed", "r1", "r1")], []), "activation")
    assert capsys.readouterr().out == "✓ two: r1 is live\n"


def test_a_deploy_that_finds_drift_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    plan = Plan(host="two", live="r", release="r", drift=("releases/x is nothing",))
    rollout.Progress(quiet=False)("planned", {"plan": plan})
    assert "drift  releases/x is nothing\n" in capsys.readouterr().out


def test_a_plan_says_first_that_it_would_be_refused(capsys: pytest.CaptureFixture[str]) -> None:
    one = Problem("the host is not provisioned", "invoke provision")
    rollout.print_plan(Plan(host="two", live=None, release="r", steps=("stage",), problems=[one]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "  ✗ a deploy would be refused: the host is not provisioned"
    assert lines[-2:] == [f"  ✗ would be refused: {one.what}", f"    do: {one.hint}"]


def test_what_does_not_serve_is_said_with_the_way_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Neither "the old one is live" after a revert, nor "as it should be" where it is down."""
    down = Outcome("two", "reverted", "new", "old", "it hangs", "old is down", healthy=False)
    rollout.print_end(Result([down], []), "deploy", " --env staging")
    output = capsys.readouterr().out
    assert "now: NOTHING SERVES WELL: old is down" in output
    assert "invoke doctor --env staging; invoke rollback --to ID --env staging" in output
    same_one = Outcome("two", "nothing", "r", "r", serving="the service is failed", healthy=False)
    rollout.print_end(Result([same_one], []), "deploy", " --env staging")
    output = capsys.readouterr().out
    assert "r is live already, but does not serve well: the service is failed" in output
    assert "do: invoke deploy --restart --release r --env staging" in output


def test_each_host_has_a_rate_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([10.0, 20.0, 1000.0, 1001.0])
    monkeypatch.setattr(rollout.time, "monotonic", lambda: next(clock))
    shown = rollout.Progress(quiet=False)
    for _ in range(2):
        shown("looking", {})
        shown("sending", {"sent": 0, "total": 5_000_000})
        shown("sending", {"sent": 5_000_000, "total": 5_000_000})
    rates = [line for line in capsys.readouterr().out.splitlines() if "/s" in line]
    assert [line.rsplit("  ", 1)[1] for line in rates] == ["500.0 kB/s", "5.0 MB/s"]


@pytest.mark.parametrize(
    ("unhealthy", "drift", "said"),
    [
        ("", (), "everything is as it should be"),
        ("", ("releases/x is nothing a deploy made",), "something has drifted"),
        ("the service is failed", (), "does not serve well: the service is failed"),
    ],
)
def test_as_it_should_be_is_said_only_where_it_is(
    unhealthy: str, drift: tuple[str, ...], said: str
) -> None:
    made = Plan(host="two", live="r", release="r", drift=drift, unhealthy=unhealthy)
    [line] = rollout.summary(made)
    assert said in line
    assert ("as it should be" in line) == (not unhealthy and not drift)


def test_provision_names_the_restart_of_the_same_environment(
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = Provisioned("two", "/opt/a", (), (), stale=[".env", "service.json"], live="r")
    for would in (False, True):
        provision._print([done], " --env staging", would=would)
        output = capsys.readouterr().out
        assert ".env, service.json" in output
        assert "invoke deploy --restart --env staging --release r" in output
    provision._print([Provisioned("two", "/opt/a", (), (), stale=[".env"])], "", would=False)
    assert "restart" not in capsys.readouterr().out  # nothing runs there yet


def test_provision_names_what_selinux_forbids(capsys: pytest.CaptureFixture[str]) -> None:
    said = _with_remedy("SELinux lets systemd start no program", "restorecon -R X")
    provision._print([Provisioned("h", "/opt/a", (), (), not_started=said)], "", would=False)
    assert "  ✗ SELinux lets systemd start no program\n    do: restorecon -R X\n" in (
        capsys.readouterr().out
    )
