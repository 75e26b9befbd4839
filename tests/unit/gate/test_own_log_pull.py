"""Copies of the logs of an application of the team's own: globs, rotations, links, liars."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from macd.errors import RefusedError
from macd.gate import logs
from macd.host import own
from macd.host.own import Probe, Service, Signals
from macd.host.rpc.logs import LogFiles, is_log, names_in
from macd.ssh.archive import command
from macd.ssh.session import Session
from tests.support.pipe_channel import PipeChannel


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    home = tmp_path_factory.mktemp("home")
    channel = PipeChannel(command(), env={"HOME": str(home), "PATH": os.environ["PATH"]}, cwd=home)
    with Session(channel) as made:
        yield made


@pytest.fixture
def app(tmp_path: Path) -> Path:
    return served(tmp_path / "app", "logs/signals.jsonl*")


def served(app: Path, files: str) -> Path:
    (app / "logs").mkdir(parents=True, exist_ok=True)
    service = Service("theirs", {"u.service": Probe()}, signals=Signals(files, "SIGNAL"))
    (app / "service.json").write_text(json.dumps({own.KEY: service.document()}))
    return app


def lines(first: int, count: int) -> str:
    return "".join(
        json.dumps({"ts": 1.7e9 + n, "n": n}) + "\n" for n in range(first, first + count)
    )


def copied(made: logs.Pulled) -> dict[str, str]:
    return {name: (made.directory / name).read_text() for name in made.names}


@pytest.mark.parametrize(
    ("name", "pattern", "taken"),
    [
        ("logs/a.jsonl", "logs/*.jsonl", True),
        ("logs/x/a.jsonl", "logs/*.jsonl", False),
        ("logs/x/y/a.jsonl", "logs/**/*.jsonl", True),
        ("logs/a.jsonl", "logs/**/*.jsonl", True),
        ("logs/.a.jsonl", "logs/*.jsonl", False),
        ("logs/../a.jsonl", "logs/*/a.jsonl", False),
        ("../a.jsonl", "*/a.jsonl", False),
        ("/etc/passwd", "**", False),
        ("logs//a.jsonl", "logs/*/a.jsonl", False),
        ("logs/a\n.jsonl", "logs/*.jsonl", False),
    ],
)
def test_which_names_a_glob_takes(name: str, pattern: str, taken: bool) -> None:
    assert is_log(name, pattern) is taken


def test_nothing_outside_is_listed_or_read(session: Session, tmp_path: Path) -> None:
    app = served(tmp_path / "app", "**/*.jsonl")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.jsonl").write_text(lines(0, 1))
    (app / "logs/link").symlink_to(outside)
    (app / "logs/secret.jsonl").symlink_to(outside / "secret.jsonl")
    os.mkfifo(app / "logs/pipe.jsonl")
    (app / "logs/a.jsonl").write_text(lines(0, 2))
    assert names_in(LogFiles(str(app), "**/*.jsonl")) == [
        "logs/a.jsonl", "logs/pipe.jsonl", "logs/secret.jsonl",
    ]  # fmt: skip
    made = logs.pull(session, str(app), tmp_path / "copy", own=True)
    assert copied(made) == {"logs/a.jsonl": lines(0, 2)}
    assert len(made.refused) == 2
    for name in ("logs/link/secret.jsonl", "../outside/secret.jsonl", "service.json"):
        asked: dict[str, Any] = {"app": str(app), "ranges": [[name, 0, 1]]}
        assert session.call("log_hashes", **asked) == [None]


def rotate(app: Path, *, copy: bool = False) -> None:
    log = app / "logs/signals.jsonl"
    for number in (3, 2, 1):
        older = Path(f"{log}.{number}")
        if older.exists():
            older.rename(f"{log}.{number + 1}")
    if copy:  # as logrotate's copytruncate
        shutil.copy(log, f"{log}.1")
        log.write_text("")
    else:
        log.rename(f"{log}.1")


@pytest.mark.parametrize("copy", [False, True])
def test_a_rotation_is_followed_and_nothing_travels_twice(
    session: Session, app: Path, tmp_path: Path, copy: bool
) -> None:
    log = app / "logs/signals.jsonl"
    log.write_text(lines(0, 50))
    first = logs.pull(session, str(app), tmp_path / "copy", own=True)
    assert first.names == ("logs/signals.jsonl",)
    for number in range(1, 4):
        with log.open("a") as file:
            file.write(lines(100 * number, 3))
        rotate(app, copy=copy)
        log.write_text(lines(100 * number + 10, 40))
        made = logs.pull(session, str(app), tmp_path / "copy", own=True)
        there = {p.relative_to(app).as_posix(): p.read_text() for p in (app / "logs").iterdir()}
        assert copied(made) == there
        assert (made.replaced, made.gone) == ((), ())
        assert made.fetched == len(lines(100 * number, 3)) + len(lines(100 * number + 10, 40))
    assert not list(made.directory.rglob("*.was-*"))


def test_a_log_that_was_replaced_is_marked_with_the_time(
    session: Session, app: Path, tmp_path: Path
) -> None:
    log = app / "logs/signals.jsonl"
    log.write_text(lines(0, 50))
    logs.pull(session, str(app), tmp_path / "copy", own=True)
    log.write_text(lines(500, 60))
    made = logs.pull(session, str(app), tmp_path / "copy", own=True)
    assert made.replaced == ("logs/signals.jsonl",)
    again = logs.pull(session, str(app), tmp_path / "copy", own=True)
    assert again.replaced_at == made.replaced_at
    assert abs(made.replaced_at["logs/signals.jsonl"] - log.stat().st_mtime) < 60


def test_a_follower_sees_each_line_once_across_a_rotation(
    session: Session, app: Path, tmp_path: Path
) -> None:
    log = app / "logs/signals.jsonl"
    log.write_text(lines(0, 5))
    tail = logs.OwnTail(logs.pull(session, str(app), tmp_path / "copy", own=True))
    came = tail.more(session, str(app))
    assert came == []
    with log.open("a") as file:
        file.write(lines(5, 2))
    rotate(app)
    log.write_text(lines(7, 3))
    for _ in range(3):
        came += tail.more(session, str(app))
    assert sorted(json.loads(raw)["n"] for raw in came) == [5, 6, 7, 8, 9]


def test_a_host_without_signals_is_said_in_words(
    session: Session, app: Path, tmp_path: Path
) -> None:
    service = Service("theirs", {"u.service": Probe()})
    (app / "service.json").write_text(json.dumps({own.KEY: service.document()}))
    with pytest.raises(RefusedError, match="no signal logs"):
        logs.pull(session, str(app), tmp_path / "copy", own=True)
    (app / "service.json").write_text("{}")
    with pytest.raises(RefusedError, match="does not know where"):
        logs.pull(session, str(app), tmp_path / "copy", own=True)
