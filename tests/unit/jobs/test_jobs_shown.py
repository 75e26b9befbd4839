"""Events become a glance: where it is, how good, how long; few lines, harmless to a terminal."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from macd.cli.train_shown import Shown, next_command
from macd.cli.verb import safe
from macd.errors import MacdError
from macd.jobs import record, remedies
from macd.jobs.follow import LocalRuns, decode
from macd.jobs.progress import Progress
from macd.jobs.transfer import checked
from macd.journal import Journal

EVENTS: list[dict[str, Any]] = [
    {"t": 1, "event": "run_started"},
    {"t": 2, "event": "stage_started", "stage": "lstm"},
    {"t": 3, "event": "epoch", "stage": "lstm", "model": "lstm", "fold": 0, "epoch": 1, "epochs": 9,
     "loss": 0.7},
    {"t": 4, "event": "fit_done", "stage": "lstm", "model": "lstm", "fold": 0, "progress": 0.25,
     "auc": {"5h": 0.6, "24h": None}, "eta_s": 75},
    {"t": 5, "event": "epoch", "stage": "lstm", "model": "lstm", "fold": 1, "epoch": 2, "epochs": 9,
     "loss": 0.65},
]  # fmt: skip


def test_progress_is_the_newest_of_everything() -> None:
    now = Progress().after(EVENTS)
    assert (now.stage, now.model, now.fold, now.epoch, now.loss) == (
        "lstm", "lstm", "fold 1", 2, 0.65,
    )  # fmt: skip
    assert (now.share, now.eta_s, now.at, now.count) == (0.25, 75, 5, 5)
    assert now.line() == (
        "[lstm]  LSTM fold 1  epoch 2/9 loss 0.6500  last AUC 5h 0.600  25 %  ETA 1:15"
    )
    assert Progress().after(EVENTS[:2]).after(EVENTS[2:]) == now


def test_a_new_stage_and_a_new_fit_begin_anew() -> None:
    now = Progress().after([*EVENTS, {"event": "stage_started", "stage": "tft"}])
    assert (now.stage, now.model, now.epoch, now.loss) == ("tft", "", 0, None)
    assert Progress().after(EVENTS[:4]).epochs == 9


def test_of_several_symbols_each_stage_names_whose_it_is() -> None:
    onnx = {"event": "stage_started", "stage": "onnx", "symbol": "LTCUSD"}
    now = Progress().after([*EVENTS, onnx])
    assert now.line() == "[onnx]  LTCUSD  25 %  ETA 1:15"
    assert now.after([{**onnx, "symbol": "ETHUSD"}]).line() == "[onnx]  ETHUSD  25 %  ETA 1:15"


@pytest.mark.parametrize(
    ("result", "command"),
    [
        ({"blocked_by": []}, "invoke release"),
        ({"symbols": ["A", "AB"], "blocked_by": ["AB auc"]}, "invoke release --without AB"),
        (
            {"symbols": ["A", "AB"], "blocked_by": ["A auc", "AB auc"]},
            "invoke release refuses it for A auc, AB auc; --accept REASON takes it",
        ),
        ({"blocked_by": ["auc"]}, "invoke release refuses it for auc; --accept REASON takes it"),
    ],
)
def test_after_a_training_the_command_that_works_is_named(
    result: dict[str, Any], command: str
) -> None:
    assert next_command(result) == command


@pytest.mark.parametrize("event", [{}, {"event": 3}, {"event": "epoch", "epoch": "x", "loss": []}])
def test_events_that_make_no_sense_break_nothing(event: dict[str, Any]) -> None:
    assert Progress().after([event]).line()


def test_lines_are_few(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    shown = Shown("h800", terminal=False, clock=lambda: now[0])
    for step in range(1000):  # a hundred seconds, ten epochs a second
        now[0] = step / 10
        epoch = {"event": "epoch", "stage": "lstm", "model": "lstm", "fold": 0, "epoch": step}
        shown.news([{**epoch, "epochs": 1000}], {})
    lines = capsys.readouterr().out.splitlines()
    assert 10 <= len(lines) <= 13
    assert "epoch 0/1000" in lines[0]


def test_lost_contact_is_said_once_and_so_is_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Shown("h800", terminal=False)
    for _ in range(5):
        shown.lost(MacdError("gone"), gives_up_in=9)
    shown.back()
    out = capsys.readouterr().out
    assert out.count("LOST CONTACT") == 1
    assert out.count("is back") == 1


def test_a_host_can_not_play_with_the_terminal() -> None:
    assert "\x1b" not in safe("\x1b[2Jhello")
    assert safe("two\nlines") == "two\nlines"


def test_events_cut_anywhere_come_out_whole() -> None:
    assert decode(b'{"n": 1}\nnot json\n[1]\n{"n": 2}\n{"n": 3') == [{"n": 1}, {"n": 2}]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried", "smaller batch"),
        ("killed by signal 9; on Linux that is mostly", "workers"),
        ("lstm: the loss became nan in epoch 3", "learning rate"),
        ("only 412 stacking samples, 2000 wanted", "ML_STACKING_MIN_SAMPLES"),
        ("✗ a package is missing: No module named 'talib.abstract'", "pip install talib"),
        ("OSError: [Errno 28] No space left on device", "make room"),
        ("the host was rebooted, or lost power, while it ran", "invoke train"),
        ("PermissionError: [Errno 13]", "chown"),
    ],
)
def test_known_failures_have_their_remedy(text: str, word: str) -> None:
    assert word in remedies.remedy_for(text)


@pytest.mark.parametrize("said", ["No module named 'macd.sizes'", "libgomp.so.1: cannot open"])
def test_what_no_package_brings_is_not_installed(said: str) -> None:
    assert remedies.remedy_for(f"✗ a package is missing: {said}") == ""


def test_an_unknown_failure_has_the_trainings_own_hint() -> None:
    status = {"reason": "boom", "result": {"stage": "tft", "why": "w", "hint": "do this"}}
    failure = remedies.explain(status, EVENTS, "\n".join(f"line {n}" for n in range(99)))
    assert (failure.stage, failure.remedy, failure.detail) == ("tft", "do this", "w")
    assert failure.log.endswith("line 98")
    assert len(failure.log.splitlines()) == 12
    assert remedies.explain({"reason": "x"}, EVENTS, "").stage == "lstm"


@pytest.mark.parametrize(
    "entry",
    [
        ["../up", 1, "0" * 64],
        ["/abs", 1, "0" * 64],
        [".hidden", 1, "0" * 64],
        ["a", True, "0" * 64],
        ["a", 1.0, "0" * 64],
        ["a", -1, "0" * 64],
        ["a", 1 << 60, "0" * 64],
        ["a", 1, "z" * 64],
        ["a", 1, None],
        [None, 1, "0" * 64],
        ["a", 1],
        "nonsense",
    ],
)
def test_unsafe_files_are_not_fetched(entry: Any) -> None:
    assert len(checked([["a/b", 1, "0" * 64]])) == 1
    with pytest.raises(MacdError):
        checked([entry])


@pytest.mark.parametrize("run", ["../../etc", "", "x", "20260101T000000Z-a/b"])
def test_ids_and_states_from_a_host_are_no_paths(tmp_path: Path, run: str) -> None:
    local = LocalRuns(tmp_path)
    with pytest.raises(MacdError):
        local.partial(run)
    with pytest.raises(MacdError):
        local.ended("20260101T000000Z-ab", "../x")


def test_a_newer_run_that_brought_nothing_is_known(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    now = datetime(2026, 1, 1, tzinfo=UTC)
    ids = {name: f"2026010{n}T000000Z-{name}" for n, name in enumerate("abcdef", start=1)}
    for name, run in ids.items():
        fields = {"run": run, "host": "h", "own": "theirs" if name != "e" else "others"}
        journal.append("train.started", fields, now=now)
    for name, state, complete in (
        ("a", "FAILED", True),
        ("c", "FAILED", True),
        ("d", "DONE", False),
    ):
        ending = {"run": ids[name], "state": state, "reason": "", "complete": complete}
        journal.append("train.finished", ending, now=now)
    rows = record.newer(journal, ids["b"], "theirs")
    assert [(one["run"], one["state"]) for one in rows] == [
        (ids["c"], "FAILED"),
        (ids["d"], "DONE"),
        (ids["f"], "RUNNING"),
    ]
    assert record.newer(journal, ids["b"], "") == []


def test_an_end_is_recorded_once_and_the_host_is_known_from_then(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    status = {"run": "20260101T000000Z-ab", "state": "FAILED", "reason": "boom"}
    now = datetime(2026, 1, 1, tzinfo=UTC)
    for _ in range(2):
        record.finished(journal, status, "h800", tmp_path, now=now)
    assert [r.kind for r in journal.records()] == ["train.finished"]
    assert record.host_of(journal, "20260101T000000Z-ab") == "h800"
    assert record.host_of(journal, "20260101T000000Z-cd") == ""
    made = {"run": "20260101T000000Z-ab", "release": "20260102T000000Z-12345678"}
    journal.append("release.made", made, now=now)
    assert record.host_of(journal, "20260101T000000Z-ab") == "h800"
