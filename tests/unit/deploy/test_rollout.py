"""Waves split as they are typed, act side by side, stop when too many fail, and are recorded."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from macd.deploy.fleet import hosts_of, waves
from macd.deploy.follow import EndUnknownError, Outcome, PendingActivation, PendingActivations
from macd.deploy.notify import notify
from macd.deploy.rollout import Limits, Result, Rollout, passed_by
from macd.errors import ContactLostError, ExitCode, MacdError, RefusedError, UsageError
from macd.inventory import Host, Inventory, load
from macd.journal import Journal
from macd.ssh.refusals import UnreachableError

HOSTS = [
    Host(name=f"prod{n}", role="serve", env="prod", ssh=f"prod{n}", app_dir="/opt/macd-analysis")
    for n in range(1, 6)
]


@pytest.fixture
def inventory(tmp_path: Path) -> Inventory:
    (tmp_path / "tasks.py").touch()
    (tmp_path / "inventory").mkdir()
    hosts = "".join(
        f"  {h.name}: {{role: serve, env: prod, ssh: {h.ssh}, app_dir: {h.app_dir}}}\n"
        for h in HOSTS
    )
    (tmp_path / "inventory" / "five.yml").write_text(f"hosts:\n{hosts}")
    return load("five", root=tmp_path)


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("", [5]),
        ("100%", [5]),
        ("1,50%,100%", [1, 2, 2]),
        ("1", [1, 4]),
        ("10%,20%,100%", [1, 4]),
        ("3,3,9", [3, 2]),
        (" 2 , 100% ", [2, 3]),
    ],
)
def test_waves(text: str, sizes: list[int]) -> None:
    made = waves(HOSTS, text)
    assert [len(wave) for wave in made] == sizes
    assert [host for wave in made for host in wave] == HOSTS


def test_a_host_may_be_named_and_must_then_serve_there(inventory: Inventory) -> None:
    assert [host.name for host in hosts_of(inventory, "prod", "prod2")] == ["prod2"]
    assert len(list(hosts_of(inventory, "prod", ""))) == 5
    with pytest.raises(UsageError, match="h800 does not serve prod") as other:
        list(hosts_of(inventory, "prod", "h800"))
    assert "prod1, prod2" in other.value.why and "invoke host.list" in other.value.hint


@pytest.mark.parametrize("text", ["0", "half", "1,,2", "101%", "-1", "1;2", "50 %"])
def test_what_is_no_wave(text: str) -> None:
    with pytest.raises(UsageError, match="--wave"):
        waves(HOSTS, text)


def away(name: str) -> UnreachableError:
    return UnreachableError(f"{name} is away", hop=name, reason="timeout", why="", hint="")


def committed(host: Host) -> Outcome:
    return Outcome(host.name, "committed", "new", "new")


def reverted(host: Host) -> Outcome:
    return Outcome(host.name, "reverted", "new", "old")


def records_of(inventory: Inventory) -> list[tuple[str, str]]:
    records = Journal(inventory.state_dir / "journal.jsonl").records()
    return [(record.kind, record.fields["host"]) for record in records]


def test_the_hosts_of_a_wave_are_acted_on_at_the_same_time(inventory: Inventory) -> None:
    together = {2: threading.Barrier(2, timeout=120), 3: threading.Barrier(3, timeout=120)}

    def one(host: Host) -> Outcome:
        together[2 if host in HOSTS[:2] else 3].wait()  # breaks unless all are inside at once
        return committed(host)

    result = Rollout(inventory, "deploy", "prod").run(waves(HOSTS, "2,100%"), one)

    assert [outcome.host for outcome in result.outcomes] == [host.name for host in HOSTS]
    assert (result.exit_code, result.failed, result.stopped) == (ExitCode.DONE, {}, "")


def test_never_more_hosts_at_once_than_was_said(inventory: Inventory) -> None:
    asked: list[str] = []

    def one(host: Host) -> Outcome:
        asked.append(host.name)
        return committed(host)

    run = Rollout(inventory, "deploy", "prod")
    run.run([HOSTS], one, limits=Limits(parallel=1))
    kinds = [kind for kind, _ in records_of(inventory)]
    assert asked == [host.name for host in HOSTS]
    assert kinds == ["deploy.began", "deploy.ended"] * 5
    with pytest.raises(UsageError, match="--parallel 0"):
        Limits(parallel=0)
    with pytest.raises(UsageError, match="--max-failed -1"):
        Limits(max_failed=-1)


def test_the_next_wave_begins_when_all_of_the_last_have_ended(inventory: Inventory) -> None:
    may_end = threading.Event()
    seen: list[list[tuple[str, str]]] = []

    def one(host: Host) -> Outcome:
        if host in HOSTS[2:]:
            seen.append(records_of(inventory))
        elif host.name == "prod1":
            assert may_end.wait(120)  # the last of its wave, whatever the machine does meanwhile
        else:
            threading.Timer(0.05, may_end.set).start()
        return committed(host)

    Rollout(inventory, "deploy", "prod").run(waves(HOSTS, "2,100%"), one)

    ends = {("deploy.ended", "prod1"), ("deploy.ended", "prod2")}
    assert len(seen) == 3
    assert all(ends <= set(records) for records in seen)


def test_a_revert_leaves_the_rest_untouched(inventory: Inventory) -> None:
    asked = []

    def one(host: Host) -> Outcome:
        asked.append(host.name)
        return reverted(host) if host.name == "prod2" else committed(host)

    result = Rollout(inventory, "deploy", "prod").run(waves(HOSTS, "1,50%,100%"), one)
    assert asked[0] == "prod1"
    assert sorted(asked) == ["prod1", "prod2", "prod3"]  # the wave of the one that reverted ends
    assert result.untouched == ["prod4", "prod5"]
    assert [outcome.exit_code for outcome in result.outcomes] == [0, 4, 0]
    assert result.exit_code == ExitCode.REVERTED
    reason = "stopped: 1 host failed or reverted, more than --max-failed 0 allows"
    assert result.stopped == f"{reason}; not touched: prod4, prod5"
    records = Journal(inventory.state_dir / "journal.jsonl").records()
    [end] = [r for r in records if r.kind == "deploy.ended" and r.fields["host"] == "prod2"]
    assert end.fields["result"] == "reverted"


@pytest.mark.parametrize(
    ("max_failed", "untouched"),
    [(0, ["prod3", "prod4", "prod5"]), (1, ["prod5"]), (2, []), (5, [])],
)
def test_so_many_may_fail(inventory: Inventory, max_failed: int, untouched: list[str]) -> None:
    """prod2 reverts, prod3 refuses; one is acted on at a time, so it stops within a wave too."""

    def one(host: Host) -> Outcome:
        if host.name == "prod3":
            raise RefusedError("no")
        return reverted(host) if host.name == "prod2" else committed(host)

    limits = Limits(parallel=1, max_failed=max_failed)
    result = Rollout(inventory, "deploy", "prod").run(waves(HOSTS, "4,100%"), one, limits=limits)

    # prod4 is of the wave in which too many failed, prod5 of the next
    assert result.untouched == (["prod4", *untouched] if max_failed == 1 else untouched)
    assert bool(result.stopped) == bool(untouched)
    assert result.exit_code == ExitCode.REVERTED


@pytest.mark.parametrize(
    ("result", "code"),
    [
        (Result([], []), 0),
        (Result([committed(HOSTS[0]), reverted(HOSTS[1])], []), 4),
        (Result([reverted(HOSTS[0])], [], failed={"b": RefusedError("no")}), 4),
        (Result([committed(HOSTS[0])], [], failed={"b": RefusedError("no")}), 6),
        (Result([reverted(HOSTS[0])], [], failed={"b": ContactLostError("gone")}), 5),
        (Result([reverted(HOSTS[0])], [], unreachable={"b": MacdError("away")}), 5),
        (Result([committed(HOSTS[0])], [], failed={"b": away("b")}), 5),
        (Result([], [], failed={"b": ContactLostError("gone"), "c": MacdError("no")}), 1),
        (Result([committed(HOSTS[0])], [], left=["b"]), 5),
        (Result([committed(HOSTS[0])], ["b"], interrupted=True), 130),
        (Result([committed(HOSTS[0])], [], unrecorded=MacdError("disk full")), 1),
        (Result([reverted(HOSTS[0])], ["b"], stopped="stopped: ..."), 4),
    ],
)
def test_the_exit_code_of_several_hosts(result: Result, code: int) -> None:
    assert result.exit_code == code


@pytest.mark.parametrize("result", ["reverted", "nothing"])
def test_what_does_not_serve_is_no_4_and_stops_the_waves(inventory: Inventory, result: str) -> None:
    """4 promises that the old release serves; 0 that all is as it should be."""

    def one(host: Host) -> Outcome:
        return Outcome(host.name, result, "new", "old", serving="old is down", healthy=False)

    ended = Rollout(inventory, "deploy", "prod").run(waves(HOSTS, "1,100%"), one)
    assert [outcome.exit_code for outcome in ended.outcomes] == [ExitCode.FAILED]
    assert ended.exit_code == ExitCode.FAILED
    assert len(ended.untouched) == 4
    last = Journal(inventory.state_dir / "journal.jsonl").records()[-1]
    assert (last.fields["result"], last.fields["well"]) == (result, False)


def test_lost_contact_stops_it_too_and_is_recorded(inventory: Inventory) -> None:
    def one(host: Host) -> Outcome:
        raise ContactLostError("gone")

    result = Rollout(inventory, "deploy", "prod").run(waves(HOSTS, "1,100%"), one)
    assert isinstance(result.error, ContactLostError)
    assert result.exit_code == ExitCode.CONTACT_LOST
    assert len(result.untouched) == 4
    last = Journal(inventory.state_dir / "journal.jsonl").records()[-1]
    assert (last.kind, last.fields["why"]) == ("deploy.ended", "gone")


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (EndUnknownError("interrupted"), "left to the host"),
        (RefusedError("no"), "refused"),
        (MacdError("the host said no", exit_code=ExitCode.REFUSED), "refused"),
        (ContactLostError("before anything was switched"), "failed"),
        (MacdError("broken"), "failed"),
    ],
)
def test_the_record_calls_failed_only_what_failed(
    inventory: Inventory, error: MacdError, result: str
) -> None:
    def one(host: Host) -> Outcome:
        raise error

    Rollout(inventory, "deploy", "prod").run([HOSTS[:1]], one)
    last = Journal(inventory.state_dir / "journal.jsonl").records()[-1]
    assert (last.kind, last.fields["result"]) == ("deploy.ended", result)


def test_who_is_passed_by_is_named_and_stops_nothing(inventory: Inventory) -> None:
    """prod1 was asked before and did not answer, prod2 is found away, prod3 refuses."""
    asked = []

    def one(host: Host) -> Outcome:
        asked.append(host.name)
        if host.name == "prod2":
            raise away("prod2")
        if host.name == "prod3":
            raise RefusedError("no")
        return committed(host)

    run = Rollout(inventory, "deploy", "prod")
    ended = run.run(
        waves(HOSTS, "3,100%"),
        one,
        limits=Limits(max_failed=1),
        passes=(UnreachableError,),
        unreachable={"prod1": ContactLostError("gone")},
        release="r3",
        serial=3,
    )
    assert sorted(asked) == ["prod2", "prod3", "prod4", "prod5"]
    assert [outcome.host for outcome in ended.outcomes] == ["prod4", "prod5"]
    assert (list(ended.unreachable), list(ended.failed)) == (["prod1", "prod2"], ["prod3"])
    assert isinstance(ended.error, RefusedError)
    assert ended.exit_code == ExitCode.CONTACT_LOST
    # Who was never reached can't have got it; who refused may, as far as is known here.
    assert [run.may_be_live(f"prod{n}") for n in (1, 2, 3)] == [0, 0, 3]

    error = passed_by("deploy", ended.unreachable, " --inventory five", release="r3")
    assert (error.what, error.why) == (
        "not deployed: prod1, prod2",
        "prod1: gone\nprod2: prod2 is away",
    )
    assert "invoke deploy --host NAME --release r3 --inventory five" in error.hint


def test_a_rollback_passes_by_who_is_away_and_ends_with_who_refuses(inventory: Inventory) -> None:
    def one(host: Host) -> Outcome:
        if host.name == "prod2":
            raise ContactLostError("gone")
        if host.name == "prod4":
            raise RefusedError("no")
        return Outcome(host.name, "committed", "old", "old")

    run = Rollout(inventory, "rollback", "prod")
    ended = run.run([HOSTS], one, passes=(ContactLostError,), limits=Limits(parallel=1))
    assert [outcome.host for outcome in ended.outcomes] == ["prod1", "prod3"]
    assert (list(ended.unreachable), ended.untouched) == (["prod2"], ["prod5"])
    assert isinstance(ended.error, RefusedError)
    error = passed_by("rollback", ended.unreachable, " --inventory five")
    assert error.exit_code == ExitCode.CONTACT_LOST
    assert (error.what, error.why) == ("not taken back: prod2", "prod2: gone")
    assert "live there: invoke rollback --host prod2 --inventory five" in error.hint
    named = passed_by("rollback", ended.unreachable, " --inventory five", release="r1")
    assert (
        "status --host prod2 --inventory five; invoke rollback --host prod2 --to r1" in named.hint
    )


def test_ctrl_c_lets_the_running_end_and_touches_no_other(inventory: Inventory) -> None:
    running_hosts: list[tuple[str, ...]] = []
    go_on, both = threading.Event(), threading.Barrier(2, timeout=120)

    def one(host: Host) -> Outcome:
        both.wait()
        if host.name == "prod1":
            os.kill(os.getpid(), signal.SIGINT)
        assert go_on.wait(120)
        return committed(host)

    def interrupted(running: object) -> None:
        running_hosts.append(tuple(running))  # type: ignore[call-overload]
        go_on.set()

    run = Rollout(inventory, "deploy", "prod")
    result = run.run(waves(HOSTS, "2,100%"), one, on_interrupt=interrupted)

    assert running_hosts == [("prod1", "prod2")]
    assert [outcome.host for outcome in result.outcomes] == ["prod1", "prod2"]
    assert result.untouched == ["prod3", "prod4", "prod5"]
    assert result.stopped == "stopped: interrupted; not touched: prod3, prod4, prod5"
    assert result.exit_code == ExitCode.INTERRUPTED
    assert [kind for kind, _ in records_of(inventory)].count("deploy.ended") == 2


def test_a_second_ctrl_c_leaves_at_once_and_what_began_may_be_live(inventory: Inventory) -> None:
    never, both = threading.Event(), threading.Barrier(2, timeout=120)

    def one(host: Host) -> Outcome:
        both.wait()
        if host.name == "prod1":
            os.kill(os.getpid(), signal.SIGINT)
        never.wait(30)
        return committed(host)

    run = Rollout(inventory, "deploy", "prod")
    result = run.run(
        waves(HOSTS, "2,100%"),
        one,
        on_interrupt=lambda _: os.kill(os.getpid(), signal.SIGINT),
        release="r3",
        serial=3,
    )
    assert result.left == ["prod1", "prod2"]
    assert result.exit_code == ExitCode.CONTACT_LOST
    assert [kind for kind, _ in records_of(inventory)] == ["deploy.began"] * 2
    assert [run.may_be_live(f"prod{n}") for n in (1, 2, 3)] == [3, 3, 0]
    never.set()


def test_an_end_that_could_not_be_recorded_is_told_and_stops_the_rest(
    inventory: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one(host: Host) -> Outcome:
        monkeypatch.setattr(Journal, "append", full)
        return committed(host)

    def full(*_: object, **__: object) -> None:
        raise MacdError("the journal could not be written")

    result = Rollout(inventory, "deploy", "prod").run(waves(HOSTS, "1,100%"), one)
    assert [outcome.live for outcome in result.outcomes] == ["new"]
    assert result.error is not None
    assert result.error.what == "the journal could not be written"
    assert result.untouched == ["prod2", "prod3", "prod4", "prod5"]
    assert result.exit_code == ExitCode.FAILED


def test_what_may_be_live_on_a_host_that_is_away(inventory: Inventory) -> None:
    run = Rollout(inventory, "deploy", "prod")

    def deploy(serial: int, result: str, live: str = "") -> int:
        def one(host: Host) -> Outcome:
            if result == "lost":
                raise ContactLostError("gone")
            return Outcome(host.name, result, f"r{serial}", live or f"r{serial}")

        run.run([HOSTS[:1]], one, release=f"r{serial}", serial=serial)
        return run.may_be_live("prod1")

    assert run.may_be_live("prod1") == 0
    assert deploy(1, "committed") == 1
    assert deploy(2, "reverted", "r1") == 1
    assert deploy(3, "lost") == 3  # it may have gone live since
    assert deploy(4, "committed") == 4
    back = Rollout(inventory, "rollback", "prod")
    back.run([HOSTS[:1]], lambda host: Outcome(host.name, "committed", "r1", "r1"), to="")
    assert run.may_be_live("prod1") == 1
    assert run.may_be_live("prod2") == 0


def test_the_watch_of_a_guard_that_ended_says_nothing_about_what_is_live(
    inventory: Inventory,
) -> None:
    """`invoke monitor` records it; a host whose activation had the same number is not meant."""
    run = Rollout(inventory, "deploy", "prod")
    run.run([HOSTS[:1]], lambda host: Outcome(host.name, "committed", "r2", "r2"),
            release="r2", serial=2)  # fmt: skip
    journal = Journal(inventory.state_dir / "journal.jsonl")
    same = {"host": "prod1", "release": "r2", "number": 4}
    journal.append("guard.ended", {**same, "result": "over"}, now=datetime.now(UTC))
    assert run.may_be_live("prod1") == 2
    assert not run.recorded(PendingActivation("prod1", 4, "t0ken", "r2", None))


def test_the_right_to_confirm_is_kept_privately(inventory: Inventory) -> None:
    activations = PendingActivations(inventory)
    assert activations.of("prod1") is None
    pending = PendingActivation("prod1", 4, "t0ken", "new", "old")
    activations.add(pending)
    assert activations.of("prod1") == pending
    kept = inventory.state_dir / "activations" / "prod1.json"
    assert kept.stat().st_mode & 0o077 == 0


@pytest.fixture
def listener() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """An HTTP server that takes what Apprise's json:// sends."""
    taken: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            taken.append(json.loads(body))
            self.send_response(500 if self.path == "/broken" else 200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"json://127.0.0.1:{server.server_port}", taken
    server.shutdown()
    thread.join()
    server.server_close()


def test_people_are_told(listener: tuple[str, list[dict[str, str]]]) -> None:
    pytest.importorskip("apprise")
    url, taken = listener
    assert notify([f"{url}/here"], "macd deploy prod: done", "prod1: new is live", good=True) == ""
    assert (taken[0]["title"], taken[0]["type"]) == ("macd deploy prod: done", "success")


@pytest.mark.parametrize("ends", ["committed", "reverted", "lost"])
def test_a_rollout_tells_how_it_ended(
    inventory: Inventory, listener: tuple[str, list[dict[str, str]]], ends: str
) -> None:
    pytest.importorskip("apprise")
    url, taken = listener
    with_webhook = inventory.model_copy(update={"notify": [f"{url}/here"]})

    def one(host: Host) -> Outcome:
        if ends == "lost":
            raise ContactLostError("gone")
        reverted = ends == "reverted"
        live = "old" if reverted else "new"
        return Outcome(host.name, ends, "new", live, "it hangs", "old is down", not reverted)

    result = Rollout(with_webhook, "deploy", "prod").run(waves(HOSTS, "1")[:1], one)
    assert result.warnings == ()
    assert len(taken) == 1
    good = ends == "committed"
    assert taken[0]["title"] == f"macd deploy prod: {'done' if good else 'FAILED'}"
    assert taken[0]["type"] == ("success" if good else "failure")
    said = {
        "committed": "prod1: new is live",
        "reverted": "NOTHING SERVES WELL: old is down",
        "lost": "prod1: gone",
    }
    assert said[ends] in taken[0]["message"]


def test_an_end_that_only_attach_saw_is_recorded_and_told_once(
    inventory: Inventory, listener: tuple[str, list[dict[str, str]]]
) -> None:
    pytest.importorskip("apprise")
    with_webhook = inventory.model_copy(update={"notify": [f"{listener[0]}/here"]})
    outcome = Outcome("prod1", "reverted", "new", "old", "it hangs", number=4)
    for _ in range(2):
        assert Rollout(with_webhook, "deploy", "prod").late([outcome]) == ()
    [record] = Journal(inventory.state_dir / "journal.jsonl").records()
    assert (record.kind, record.fields["result"]) == ("deploy.ended", "reverted")
    [message] = listener[1]
    assert "prod1: deploy of new reverted: it hangs" in message["message"]


def test_people_get_one_message_for_all_hosts(
    inventory: Inventory, listener: tuple[str, list[dict[str, str]]]
) -> None:
    pytest.importorskip("apprise")
    with_webhook = inventory.model_copy(update={"notify": [f"{listener[0]}/here"]})

    def one(host: Host) -> Outcome:
        if host.name == "prod3":
            raise RefusedError("locked")
        return reverted(host) if host.name == "prod2" else committed(host)

    Rollout(with_webhook, "deploy", "prod").run(waves(HOSTS, "3,100%"), one)
    [message] = listener[1]
    assert message["title"] == "macd deploy prod: FAILED"
    for said in (
        "prod1: new is live",
        "prod2: deploy of new reverted",
        "prod3: locked",
        "not touched: prod4, prod5",
    ):
        assert said in message["message"]


def test_a_dead_url_fails_no_deploy(inventory: Inventory) -> None:
    pytest.importorskip("apprise")
    with_webhook = inventory.model_copy(update={"notify": ["json://127.0.0.1:1/s3cret"]})
    result = Rollout(with_webhook, "deploy", "prod").run(
        waves(HOSTS, ""), lambda host: Outcome(host.name, "committed", "new", "new")
    )
    assert (result.error, len(result.outcomes)) == (None, 5)
    [warning] = result.warnings
    assert "did not take the message" in warning
    assert "s3cret" not in warning


@pytest.mark.parametrize("url", ["{base}/broken", "json://127.0.0.1:1/", "nonsense://x", "json://"])
def test_a_failure_is_a_note_without_the_url(
    listener: tuple[str, list[dict[str, str]]], url: str
) -> None:
    pytest.importorskip("apprise")
    problem = notify([url.format(base=listener[0])], "title", "body", good=False)
    assert "did not take" in problem
    assert "://" not in problem


def test_what_nobody_thought_of_on_one_host_hides_no_other(inventory: Inventory) -> None:
    def one(host: Host) -> Outcome:
        if host.name == "prod2":
            raise KeyError("golden")
        return committed(host)

    run = Rollout(inventory, "deploy", "prod")
    result = run.run([HOSTS], one, limits=Limits(parallel=1), release="r3", serial=3)
    assert [outcome.host for outcome in result.outcomes] == ["prod1"]
    assert "KeyError: 'golden'" in result.failed["prod2"].what
    assert "test_rollout.py" in result.failed["prod2"].why
    assert result.untouched == ["prod3", "prod4", "prod5"]
    assert result.exit_code == ExitCode.FAILED
    kinds = [kind for kind, _ in records_of(inventory)]
    assert kinds == ["deploy.began", "deploy.ended"] * 2
    assert run.may_be_live("prod2") == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt(), KeyError("golden")])
def test_a_host_alone_has_an_end_in_the_journal_too(
    inventory: Inventory, error: BaseException
) -> None:
    def one(_: Host) -> Outcome:
        raise error

    run = Rollout(inventory, "deploy", "prod")
    with pytest.raises(type(error)) as raised:
        run.run([HOSTS[:1]], one, release="r3", serial=3)
    assert raised.value is error
    assert [kind for kind, _ in records_of(inventory)] == ["deploy.began", "deploy.ended"]
    assert run.may_be_live("prod1") == 3


def test_a_full_disk_here_hides_no_error_of_a_host(
    inventory: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one(_: Host) -> Outcome:
        monkeypatch.setattr(Journal, "append", full)
        raise ContactLostError("gone")

    def full(*_: object, **__: object) -> None:
        raise MacdError("the journal could not be written")

    result = Rollout(inventory, "deploy", "prod").run([HOSTS[:1]], one)
    assert result.failed["prod1"].what == "gone"
    assert isinstance(result.error, ContactLostError)
    assert result.unrecorded is not None
    assert result.unrecorded.what == "the journal could not be written"


def test_of_who_was_lost_while_it_switched_nobody_says_it_did_not(inventory: Inventory) -> None:
    """Told to try again, it would go back once more where the first time had worked."""

    def one(host: Host) -> Outcome:
        if host.name == "prod2":
            raise EndUnknownError("gone")
        if host.name == "prod3":
            raise away("prod3")
        return Outcome(host.name, "committed", "old", "old")

    run = Rollout(inventory, "rollback", "prod")
    ended = run.run([HOSTS], one, passes=(UnreachableError, ContactLostError))
    assert [outcome.host for outcome in ended.outcomes] == ["prod1", "prod4", "prod5"]
    error = passed_by("rollback", ended.unreachable, " --inventory five")
    assert error.what == "not taken back: prod3; not known how it ended: prod2"
    assert "invoke rollback --host prod2" not in error.hint
    assert "invoke rollback --host prod3 --inventory five" in error.hint
    assert "invoke deploy --attach --host prod2 --inventory five" in error.hint
