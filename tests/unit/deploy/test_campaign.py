"""Waves split as they are typed, stop at the first failure, and are recorded whatever happens."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from macd.deploy.campaign import Campaign, Memory, not_taken_back, only_host, waves
from macd.deploy.follow import Begun, Outcome
from macd.deploy.notify import notify
from macd.errors import ContactLostError, ExitCode, RefusedError, UsageError
from macd.inventory import Host, Inventory, load
from macd.journal import Journal

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


def test_one_host_is_the_one_named_and_never_picked_for_you(inventory: Inventory) -> None:
    assert only_host(inventory, "prod", "prod2", "logs shows").name == "prod2"
    with pytest.raises(UsageError) as several:
        only_host(inventory, "prod", "", "logs shows")
    assert several.value.what == "logs shows one host at a time"
    assert several.value.hint == "--host, one of prod1, prod2, prod3, prod4, prod5"
    with pytest.raises(UsageError, match="h800 does not serve prod") as other:
        only_host(inventory, "prod", "h800", "logs shows")
    assert "prod1, prod2" in other.value.why and "invoke host.list" in other.value.hint


@pytest.mark.parametrize("text", ["0", "half", "1,,2", "101%", "-1", "1;2", "50 %"])
def test_what_is_no_wave(text: str) -> None:
    with pytest.raises(UsageError, match="--wave"):
        waves(HOSTS, text)


def test_a_revert_leaves_the_rest_untouched(inventory: Inventory) -> None:
    asked = []

    def one(host: Host) -> Outcome:
        asked.append(host.name)
        result = "reverted" if host.name == "prod2" else "committed"
        return Outcome(host.name, result, "new", "new" if result == "committed" else "old")

    result = Campaign(inventory, "deploy", "prod").run(waves(HOSTS, "1,50%,100%"), one)
    assert asked == ["prod1", "prod2"]
    assert result.untouched == ["prod3", "prod4", "prod5"]
    assert [outcome.exit_code for outcome in result.outcomes] == [ExitCode.DONE, ExitCode.REVERTED]
    records = Journal(inventory.state_dir / "journal.jsonl").records()
    assert [(r.kind, r.fields["host"]) for r in records] == [
        ("deploy.began", "prod1"),
        ("deploy.ended", "prod1"),
        ("deploy.began", "prod2"),
        ("deploy.ended", "prod2"),
    ]
    assert records[-1].fields["result"] == "reverted"


@pytest.mark.parametrize("result", ["reverted", "nothing"])
def test_what_does_not_serve_is_no_4_and_stops_the_waves(inventory: Inventory, result: str) -> None:
    """4 promises that the old release serves; 0 that all is as it should be."""

    def one(host: Host) -> Outcome:
        return Outcome(host.name, result, "new", "old", serving="old is down", well=False)

    ended = Campaign(inventory, "deploy", "prod").run(waves(HOSTS, ""), one)
    assert [outcome.exit_code for outcome in ended.outcomes] == [ExitCode.FAILED]
    assert len(ended.untouched) == 4
    last = Journal(inventory.state_dir / "journal.jsonl").records()[-1]
    assert (last.fields["result"], last.fields["well"]) == (result, False)


def test_lost_contact_stops_it_too_and_is_recorded(inventory: Inventory) -> None:
    def one(host: Host) -> Outcome:
        raise ContactLostError("gone")

    result = Campaign(inventory, "deploy", "prod").run(waves(HOSTS, ""), one)
    assert isinstance(result.error, ContactLostError)
    assert len(result.untouched) == 4
    last = Journal(inventory.state_dir / "journal.jsonl").records()[-1]
    assert (last.kind, last.fields["why"]) == ("deploy.ended", "gone")


def test_a_rollback_passes_by_who_is_away_and_stops_at_who_refuses(inventory: Inventory) -> None:
    def one(host: Host) -> Outcome:
        if host.name == "prod2":
            raise ContactLostError("gone")
        if host.name == "prod4":
            raise RefusedError("no")
        return Outcome(host.name, "committed", "old", "old")

    run = Campaign(inventory, "rollback", "prod")
    ended = run.run([HOSTS], one, passes=(ContactLostError,))
    assert [outcome.host for outcome in ended.outcomes] == ["prod1", "prod3"]
    assert (list(ended.away), ended.untouched) == (["prod2"], ["prod5"])
    assert isinstance(ended.error, RefusedError)
    told = not_taken_back(ended.away, " --inventory five")
    assert told.exit_code == ExitCode.CONTACT_LOST
    assert (told.what, told.why) == ("not taken back: prod2", "prod2: gone")
    assert "invoke rollback --host prod2 --inventory five" in told.hint


def test_what_may_be_live_on_a_host_that_is_away(inventory: Inventory) -> None:
    run = Campaign(inventory, "deploy", "prod")

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
    back = Campaign(inventory, "rollback", "prod")
    back.run([HOSTS[:1]], lambda host: Outcome(host.name, "committed", "r1", "r1"), to="")
    assert run.may_be_live("prod1") == 1
    assert run.may_be_live("prod2") == 0


def test_the_right_to_confirm_is_kept_privately(inventory: Inventory) -> None:
    memory = Memory(inventory)
    assert memory.of("prod1") is None
    begun = Begun("prod1", 4, "t0ken", "new", "old")
    memory.keep(begun)
    assert memory.of("prod1") == begun
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
def test_a_campaign_tells_how_it_ended(
    inventory: Inventory, listener: tuple[str, list[dict[str, str]]], ends: str
) -> None:
    pytest.importorskip("apprise")
    url, taken = listener
    told = inventory.model_copy(update={"notify": [f"{url}/here"]})

    def one(host: Host) -> Outcome:
        if ends == "lost":
            raise ContactLostError("gone")
        reverted = ends == "reverted"
        live = "old" if reverted else "new"
        return Outcome(host.name, ends, "new", live, "it hangs", "old is down", not reverted)

    result = Campaign(told, "deploy", "prod").run(waves(HOSTS, "1")[:1], one)
    assert result.warnings == ()
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
    told = inventory.model_copy(update={"notify": [f"{listener[0]}/here"]})
    outcome = Outcome("prod1", "reverted", "new", "old", "it hangs", number=4)
    for _ in range(2):
        assert Campaign(told, "deploy", "prod").late(outcome) == ""
    [record] = Journal(inventory.state_dir / "journal.jsonl").records()
    assert (record.kind, record.fields["result"]) == ("deploy.ended", "reverted")
    [message] = listener[1]
    assert "prod1: deploy of new reverted: it hangs" in message["message"]


def test_a_dead_url_fails_no_deploy(inventory: Inventory) -> None:
    pytest.importorskip("apprise")
    told = inventory.model_copy(update={"notify": ["json://127.0.0.1:1/s3cret"]})
    result = Campaign(told, "deploy", "prod").run(
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
    told = notify([url.format(base=listener[0])], "title", "body", good=False)
    assert "did not take" in told
    assert "://" not in told
