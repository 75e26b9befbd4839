"""Pulls from a real agent over a pipe: rotation, torn lines, cuts, kills, liars."""

from __future__ import annotations

import os
import random
import shutil
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from macd.errors import MacdError, RefusedError
from macd.gate import logs
from macd.host.judge import reading
from macd.host.judge.analyse import Analysis, Window
from macd.host.rpc.logs import HEAD
from macd.ssh.archive import command
from macd.ssh.session import Session
from tests.support import signal_lines
from tests.support.pipe_channel import PipeChannel

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    home = tmp_path_factory.mktemp("home")
    channel = PipeChannel(command(), env={"HOME": str(home), "PATH": os.environ["PATH"]}, cwd=home)
    with Session(channel) as made:
        yield made


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "app/data/live").mkdir(parents=True)
    return tmp_path / "app"


def live(app: Path) -> Path:
    return app / "data/live"


def line(number: int) -> bytes:
    return b'{"seq":%d,"pad":"%s"}\n' % (number, b"x" * (number % 700))


def same(copy: Path, app: Path) -> None:
    ours = {p.name: p.read_bytes() for p in copy.glob("trades_????????.jsonl")}
    assert ours == {p.name: p.read_bytes() for p in live(app).glob("trades_*.jsonl")}


def test_rotation_and_appends_during_a_hundred_pulls_lose_no_line(
    session: Session, app: Path, tmp_path: Path
) -> None:
    stop = threading.Event()
    written = 0

    def write() -> None:
        nonlocal written
        rng = random.Random(3)
        while not stop.is_set() and written < 3000:
            day = f"trades_{20260101 + written // 100}.jsonl"
            with (live(app) / day).open("ab", buffering=0) as file:
                raw = line(written + 1)
                cut = rng.randrange(len(raw))
                file.write(raw[:cut])  # a pull may come between the halves
                file.write(raw[cut:])
                written += 1
            stop.wait(0.001)

    writer = threading.Thread(target=write)
    writer.start()
    fetched = 0
    try:
        pulls = 0
        while pulls < 100 or written < 250:
            pulls += 1
            made = logs.pull(session, str(app), tmp_path / "copy")
            fetched += made.fetched
            assert made.replaced == made.gone == ()
    finally:
        stop.set()
        writer.join()
    made = logs.pull(session, str(app), tmp_path / "copy")
    same(tmp_path / "copy", app)
    whole = b"".join((tmp_path / "copy" / name).read_bytes() for name in made.names)
    assert whole == b"".join(map(line, range(1, written + 1)))
    assert len(made.names) > 1, "files were rotated meanwhile"
    # only torn halves travelled twice
    assert len(whole) <= fetched + made.fetched <= len(whole) + (pulls + 1) * 800
    assert logs.pull(session, str(app), tmp_path / "copy").fetched == 0


def test_a_torn_last_line_is_left_until_it_is_whole(
    session: Session, app: Path, tmp_path: Path
) -> None:
    log = live(app) / "trades_20260101.jsonl"
    log.write_bytes(line(1) + line(2)[:5])
    logs.pull(session, str(app), tmp_path / "copy")
    assert (tmp_path / "copy" / log.name).read_bytes() == line(1)
    log.write_bytes(line(1) + line(3))  # the service took the torn line back and wrote another
    made = logs.pull(session, str(app), tmp_path / "copy")
    assert (tmp_path / "copy" / log.name).read_bytes() == line(1) + line(3)
    assert made.replaced == ()


@pytest.mark.parametrize("how", ["cut", "cut and grown", "edited", "new file", "beginning gone"])
def test_a_log_that_was_changed_on_the_host_is_fetched_anew_and_named(
    session: Session, app: Path, tmp_path: Path, how: str
) -> None:
    log = live(app) / "trades_20260101.jsonl"
    before = b"".join(map(line, range(1, 200)))
    assert len(before) > 4 * HEAD
    log.write_bytes(before)
    logs.pull(session, str(app), tmp_path / "copy")
    if how == "cut":
        os.truncate(log, len(before) // 2)
    elif how == "cut and grown":
        kept = b"".join(before.splitlines(keepends=True)[:-3])
        os.truncate(log, len(kept))
        with log.open("ab") as file:
            file.write(b"".join(map(line, range(301, 320))))
    elif how == "edited":
        log.write_bytes(before.replace(b'"seq":2,', b'"seq":7,'))
    elif how == "new file":
        log.unlink()
        (live(app) / "inode").write_bytes(b"")  # so that the number is not given again
        log.write_bytes(before.replace(b'"seq":50,', b'"seq":77,'))
    else:
        log.write_bytes(before[len(line(1)) :])
    made = logs.pull(session, str(app), tmp_path / "copy")
    assert made.replaced == (log.name,)
    assert (tmp_path / "copy" / f"{log.name}.was-1").read_bytes() == before
    content = log.read_bytes()
    assert (tmp_path / "copy" / log.name).read_bytes() == content[: content.rfind(b"\n") + 1]
    # it stays named: the evidence of that day is not what it was
    assert logs.pull(session, str(app), tmp_path / "copy").replaced == (log.name,)


def test_a_kill_while_the_old_copy_is_put_aside_forgets_nothing(
    session: Session, app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = live(app) / "trades_20260101.jsonl"
    before = b"".join(map(line, range(1, 60)))
    log.write_bytes(before)
    logs.pull(session, str(app), tmp_path / "copy")
    # only the middle differs, in another file: nothing but the inode leads to it
    log.unlink()
    (live(app) / "inode").write_bytes(b"")
    log.write_bytes(before.replace(b'"seq":30,', b'"seq":77,'))
    put_aside = logs._set_aside
    for done in (False, True):  # before the rename, and behind it

        def killed(path: Path, done: bool = done) -> None:
            if done:
                put_aside(path)
            raise KeyboardInterrupt

        monkeypatch.setattr(logs, "_set_aside", killed)
        with pytest.raises(KeyboardInterrupt):
            logs.pull(session, str(app), tmp_path / "copy")
    monkeypatch.undo()
    assert logs.pull(session, str(app), tmp_path / "copy").replaced == (log.name,)
    assert (tmp_path / "copy" / f"{log.name}.was-1").read_bytes() == before
    same(tmp_path / "copy", app)


def test_comparing_copies_costs_one_call_however_many_there_are(
    session: Session, app: Path, tmp_path: Path
) -> None:
    for day in range(20260101, 20260109):
        (live(app) / f"trades_{day}.jsonl").write_bytes(line(day))
    counting = Liar(session)
    logs.pull(counting, str(app), tmp_path / "copy")  # type: ignore[arg-type]
    assert counting.called == ["log_files"]
    logs.pull(counting, str(app), tmp_path / "copy")  # type: ignore[arg-type]
    assert counting.called[1:] == ["log_files", "log_hashes"]


def test_a_log_that_is_gone_on_the_host_is_told_until_it_is_back(
    session: Session, app: Path, tmp_path: Path
) -> None:
    for day in ("20260101", "20260102"):
        (live(app) / f"trades_{day}.jsonl").write_bytes(line(1))
    logs.pull(session, str(app), tmp_path / "copy")
    (live(app) / "trades_20260101.jsonl").rename(live(app) / "away")
    for _ in range(2):
        made = logs.pull(session, str(app), tmp_path / "copy")
        assert (made.gone, made.names) == (("trades_20260101.jsonl",), ("trades_20260102.jsonl",))
    (live(app) / "away").rename(live(app) / "trades_20260101.jsonl")
    assert logs.pull(session, str(app), tmp_path / "copy").gone == ()


def test_a_restored_log_with_another_inode_goes_on(
    session: Session, app: Path, tmp_path: Path
) -> None:
    log = live(app) / "trades_20260101.jsonl"
    log.write_bytes(b"".join(map(line, range(1, 60))))
    logs.pull(session, str(app), tmp_path / "copy")
    shutil.copy(log, live(app) / "restored")
    (live(app) / "restored").replace(log)
    with log.open("ab") as file:
        file.write(line(60))
    made = logs.pull(session, str(app), tmp_path / "copy")
    assert (made.replaced, made.fetched) == ((), len(line(60)))
    same(tmp_path / "copy", app)


def test_a_killed_pull_goes_on_where_it_was(session: Session, app: Path, tmp_path: Path) -> None:
    log = live(app) / "trades_20260101.jsonl"
    content = b"".join(map(line, range(1, 9000)))
    assert len(content) > 2 << 20
    log.write_bytes(content)
    logs.pull(session, str(app), tmp_path / "copy")
    mine = tmp_path / "copy" / log.name
    os.truncate(mine, 1_500_000)  # as a kill leaves it: the middle of a line
    made = logs.pull(session, str(app), tmp_path / "copy")
    assert 0 < made.fetched < len(content) - 1_400_000
    same(tmp_path / "copy", app)
    (tmp_path / "copy/index.json").unlink()  # not even knowing what it has
    assert logs.pull(session, str(app), tmp_path / "copy").fetched == 0
    (tmp_path / "copy/index.json").write_text("{torn")
    mine.write_bytes(mine.read_bytes().replace(b'"seq":5,', b'"seq":6,'))
    logs.pull(session, str(app), tmp_path / "copy")
    same(tmp_path / "copy", app)


def test_links_pipes_and_strange_names_are_no_logs(
    session: Session, app: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"key\n")
    (live(app) / "trades_20260101.jsonl").symlink_to(secret)
    os.mkfifo(live(app) / "trades_20260102.jsonl")
    (live(app) / "trades_\x1b[2J.jsonl").write_bytes(b"x\n")
    (live(app) / "trades_20260103.jsonl").write_bytes(line(1))
    made = logs.pull(session, str(app), tmp_path / "copy")
    assert made.names == ("trades_20260103.jsonl",)
    assert len(made.refused) == 3
    assert all("\x1b" not in name for name, _ in made.refused)
    for name in ("../../../secret", "/etc/passwd", "trades_20260101.jsonl"):
        with pytest.raises(MacdError):
            session.call("log_read", app=str(app), name=name, offset=0, limit=99)
        assert session.call("log_hashes", app=str(app), ranges=[[name, 0, 1]]) == [None]


class Liar:
    """A host that answers what it likes."""

    def __init__(self, session: Session, **over: Any) -> None:
        self._session, self._over = session, over
        self.called: list[str] = []

    def call(self, op: str, **args: Any) -> Any:
        self.called.append(op)
        answer = self._session.call(op, **args)
        if op == "log_files" and self._over:
            answer["files"] = [{**answer["files"][0], **self._over}]
        return answer

    def submit(self, op: str, **args: Any) -> Any:
        return self._session.submit(op, **args)


@pytest.mark.parametrize(
    "over",
    [
        {"name": "../trades_20260101.jsonl"},
        {"name": "/tmp/trades_20260101.jsonl"},
        {"name": "trades_20260101.jsonl\n"},
        {"name": 5},
        {"size": -1},
        {"size": True},
        {"size": 1 << 60},
        {"head": 1 << 40},
        {"inode": "7"},
        {"head_sha256": None},
    ],
)
def test_hostile_names_and_sizes_are_refused(
    session: Session, app: Path, tmp_path: Path, over: dict[str, Any]
) -> None:
    (live(app) / "trades_20260101.jsonl").write_bytes(line(1))
    with pytest.raises(RefusedError, match="can't be true"):
        logs.pull(Liar(session, **over), str(app), tmp_path / "copy")  # type: ignore[arg-type]
    assert list((tmp_path / "copy").glob("*.jsonl")) == []


def test_a_size_that_is_too_large_brings_what_is_there(
    session: Session, app: Path, tmp_path: Path
) -> None:
    (live(app) / "trades_20260101.jsonl").write_bytes(line(1))
    liar = Liar(session, size=50 << 20)
    assert logs.pull(liar, str(app), tmp_path / "copy").fetched == len(line(1))  # type: ignore[arg-type]


def test_following_tells_every_line_once_over_rotation(
    session: Session, app: Path, tmp_path: Path
) -> None:
    first, second = live(app) / "trades_20260101.jsonl", live(app) / "trades_20260102.jsonl"
    first.write_bytes(line(1) + line(2))
    place = logs.end_of(logs.pull(session, str(app), tmp_path / "copy"))
    with first.open("ab") as file:
        file.write(line(3) + line(4)[:4])
    came, place = logs.more(session, str(app), place)
    assert came == [line(3).rstrip()]
    with first.open("ab") as file:
        file.write(line(4)[4:])
    second.write_bytes(line(5))
    lines = []
    while len(lines) < 2:
        came, place = logs.more(session, str(app), place)
        lines += came
    assert lines == [line(4).rstrip(), line(5).rstrip()]


def test_following_skips_no_line_that_was_written_just_before_rotation(
    session: Session, app: Path
) -> None:
    first, second = live(app) / "trades_20260101.jsonl", live(app) / "trades_20260102.jsonl"
    first.write_bytes(line(1))

    class Midnight(Liar):
        """The last lines of the day come after they were looked for, then the day is over."""

        def call(self, op: str, **args: Any) -> Any:
            if op == "log_files" and not second.exists():
                with first.open("ab") as file:
                    file.write(line(2) + line(3))
                second.write_bytes(line(4))
            return super().call(op, **args)

    place = logs.Place(first.name, len(line(1)), first.stat().st_ino)
    lines = []
    while len(lines) < 3:
        came, place = logs.more(Midnight(session), str(app), place)  # type: ignore[arg-type]
        lines += came
    assert lines == [line(number).rstrip() for number in (2, 3, 4)]


def test_following_goes_on_when_the_file_at_hand_was_deleted(session: Session, app: Path) -> None:
    second = live(app) / "trades_20260102.jsonl"
    second.write_bytes(line(5))
    _, place = logs.more(session, str(app), logs.Place("trades_20260101.jsonl", 7, 3))
    assert logs.more(session, str(app), place)[0] == [line(5).rstrip()]


def test_any_order_of_pieces_reads_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = signal_lines.lines(300, end=NOW, every=timedelta(minutes=8))
    signal_lines.write(tmp_path, made)
    newest = reading.ordered(tmp_path)[-1].path
    with newest.open("ab") as file:
        file.write(b"junk\n\n" + b"y" * ((1 << 20) + 1) + b"\n" + b'{"torn":')
    outcomes = []
    for piece, block, small, workers in (
        (8 << 20, 1 << 20, 1 << 30, 1),
        (1000, 333, 1 << 30, 1),
        (4000, 1 << 20, 0, 2),
    ):
        monkeypatch.setattr(reading, "_PIECE", piece)
        monkeypatch.setattr(reading, "_BLOCK", block)
        monkeypatch.setattr(reading, "_SMALL", small)
        analysis = Analysis(Window(0, 1 << 50, signal_lines.RELEASE))
        reading.analyse(reading.ordered(tmp_path), analysis, workers=workers)
        outcomes.append((analysis.tally(), analysis.document()))
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert outcomes[0][0]["ml_coverage"] == (300, 302)
    lines = newest.read_bytes().split(b"\n").index(b"junk") + 1
    assert [one["line"] for one in outcomes[0][1]["malformed"]["quarantine"]] == [lines, lines + 2]
