"""A release repeats its own lines: by the real loop, and by the code that an audit asks."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from macd.app.market.bars import read_bars, write_bars
from macd.app.predict.scoring import Scorer
from macd.app.service import replay as release_code
from macd.app.service.feed import Bar, Corrected, Item
from macd.app.service.loop import NEED
from macd.errors import MacdError, UsageError
from macd.gate import replay
from macd.gate.replay import DIFFERENT, EQUAL, EXPLAINED, Outcome, Rows
from tests.support.constant_model import make_constant
from tests.support.deployed_app import App, make_app
from tests.support.training_run import SAMPLE
from tests.unit.app.service.test_service_loop import BARS, Run, Scripted

pytestmark = pytest.mark.slow
ID = "20260301T000000Z-00000000"
COUNT = 8


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> App:
    return make_app(tmp_path_factory.mktemp("app") / "a")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def raws(run: Run) -> list[bytes]:
    paths = sorted(run.settings.live.glob("*.jsonl"))
    return [line for path in paths for line in path.read_bytes().splitlines()]


def final(bars: Sequence[Bar] = BARS) -> dict[str, Rows]:
    rows = {b.open_ms: (b.open, b.high, b.low, b.close, b.volume) for b in bars}
    return {"BTCUSD": rows}


def audited(run: Run, app: App, finals: Mapping[str, Rows]) -> tuple[list[Outcome], replay.Written]:
    """What macd/gate/audit.py does, without a host between."""
    written = replay.read(raws(run), release=ID, symbol="BTCUSD", tf="1h", since_ms=0)
    doubtful = written.doubtful(finals, written.lines)
    outcomes = []
    for line in written.lines:
        first = replay.first_needed(line, finals["BTCUSD"], NEED)
        assert first is not None
        pair = replay.cases(written, line, finals, doubtful, first)
        question = {
            "ask": "predict",
            "bars": {
                name: [[ms, *row] for ms, row in rows.items()] for name, rows in finals.items()
            },
            "cases": [case.document() for case in pair],
        }
        asked = json.loads(json.dumps(question))
        head, *said = json.loads(json.dumps([*release_code.answers(asked, app.root, app.release)]))
        apart = [replay.differences(line.fields, one["fields"], head["features"]) for one in said]
        outcomes.append(replay.outcome(line, *apart, pair[1].corrected))
    return outcomes, written


def kinds(outcomes: Sequence[Outcome]) -> list[str]:
    return [one.kind for one in outcomes]


def test_the_release_says_again_what_it_said(run: Run, app: App) -> None:
    run(Scripted(run.stop, BARS[NEED : NEED + COUNT]))
    outcomes, written = audited(run, app, final())
    assert kinds(outcomes) == [EQUAL] * COUNT
    figures = replay.summary(outcomes, written.left_out, {})
    assert (figures["share_equal"], figures["verdict"]) == (1.0, EQUAL)


def test_a_bar_that_was_corrected_later_explains_the_lines_behind_it(run: Run, app: App) -> None:
    run(Scripted(run.stop, BARS[NEED : NEED + 4]))
    now = list(BARS)
    now[NEED + 1] = dataclasses.replace(BARS[NEED + 1], close=BARS[NEED + 1].close * 1.001)
    outcomes, _ = audited(run, app, final(now))
    assert kinds(outcomes) == [EQUAL, EXPLAINED, EXPLAINED, EXPLAINED]
    assert outcomes[1].corrected == (("BTCUSD", BARS[NEED + 1].open_ms),)


def test_a_correction_that_the_service_saw_leaves_the_later_lines_equal(run: Run, app: App) -> None:
    was = BARS[NEED + 1]
    bar = dataclasses.replace(was, close=was.close * 1.001)
    items: list[Item] = [BARS[NEED], was, Corrected(bar, was), *BARS[NEED + 2 : NEED + 4]]
    run(Scripted(run.stop, items))
    now = [*BARS[: NEED + 1], bar, *BARS[NEED + 2 :]]
    assert kinds(audited(run, app, final(now))[0]) == [EQUAL, EXPLAINED, EQUAL, EQUAL]


def test_a_bar_of_the_history_that_was_corrected_while_the_service_ran(run: Run, app: App) -> None:
    was = BARS[NEED - 1]
    bar = dataclasses.replace(was, close=was.close * 1.001)
    run(Scripted(run.stop, [BARS[NEED], Corrected(bar, was), BARS[NEED + 1]]))
    now = [*BARS[: NEED - 1], bar, *BARS[NEED:]]
    assert kinds(audited(run, app, final(now))[0]) == [EXPLAINED, EQUAL]


def test_bars_that_never_came_and_bars_that_were_refused_are_left_out(run: Run, app: App) -> None:
    bad = dataclasses.replace(BARS[NEED + 1], low=-1.0)
    items = [BARS[NEED], bad, *BARS[NEED + 2 : NEED + 5]]  # one bar lacks, one line has no models
    run(Scripted(run.stop, items))
    outcomes, written = audited(run, app, final())
    assert kinds(outcomes) == [EQUAL] * 3
    assert [*written.left_out.values()] == [1]
    assert "a gap before it" in next(iter(written.left_out))


def test_a_bar_that_the_source_does_not_have_any_more_is_put_back(run: Run, app: App) -> None:
    run(Scripted(run.stop, BARS[NEED : NEED + 3]))
    now = [bar for bar in BARS if bar is not BARS[NEED + 1]]
    assert kinds(audited(run, app, final(now))[0]) == [EQUAL] * 3


def test_after_a_restart_the_history_is_the_final_one(run: Run, app: App) -> None:
    """What was corrected before a restart is final behind it, without a line that says so."""
    was = BARS[NEED]
    bar = dataclasses.replace(was, close=was.close * 1.001)
    now = [*BARS[:NEED], bar, *BARS[NEED + 1 :]]
    run(Scripted(run.stop, [was, BARS[NEED + 1]]))
    again = Scripted(run.stop, BARS[NEED + 2 : NEED + 4])
    again.known = now[2 : NEED + 2]
    run(again)
    assert kinds(audited(run, app, final(now))[0]) == [EXPLAINED, EXPLAINED, EQUAL, EQUAL]


def _other_model(app: App) -> None:
    make_constant(app.models / "lstm_1h.onnx")


def test_a_changed_model_differs_and_says_where(run: Run, tmp_path: Path) -> None:
    run(Scripted(run.stop, BARS[NEED : NEED + 2]))
    changed = make_app(tmp_path / "changed")
    _other_model(changed)
    outcomes, written = audited(run, changed, final())
    assert kinds(outcomes) == [DIFFERENT] * 2
    figures = replay.summary(outcomes, written.left_out, {})
    assert figures["first_difference"]["name"] == "ml_lstm_prob"
    assert figures["first_difference"]["replayed"] == pytest.approx(0.5)


def test_changed_feature_code_differs_and_names_the_feature(
    run: Run, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(Scripted(run.stop, BARS[NEED : NEED + 2]))
    rows = Scorer.rows

    def other(self: Scorer, table: pl.DataFrame) -> Any:
        return rows(self, table.with_columns(pl.col("ret_4") + 0.5))

    monkeypatch.setattr(Scorer, "rows", other)
    outcomes, _ = audited(run, app, final())
    assert kinds(outcomes) == [DIFFERENT] * 2
    first = outcomes[0].apart[0]
    assert (first.name, first.size) == ("ret_4", pytest.approx(0.5, abs=1e-6))


def test_a_corrected_bar_does_not_excuse_a_changed_model(run: Run, tmp_path: Path) -> None:
    run(Scripted(run.stop, BARS[NEED : NEED + 2]))
    changed = make_app(tmp_path / "changed")
    _other_model(changed)
    now = list(BARS)
    now[NEED] = dataclasses.replace(BARS[NEED], close=BARS[NEED].close * 1.001)
    outcomes, _ = audited(run, changed, final(now))
    assert kinds(outcomes) == [DIFFERENT] * 2
    assert outcomes[0].apart[0].name == "ml_lstm_prob"  # not the features of the corrected bar


def test_cross_bars_are_those_of_the_line(run: Run, app: App) -> None:
    """A cross bar that was corrected explains as well, and its absence is as it was."""
    settings = json.loads((app.root / "service.json").read_text())
    run.settings = dataclasses.replace(run.settings, cross=("ETHUSD",))
    other = [dataclasses.replace(bar, symbol="ETHUSD") for bar in BARS[: NEED + 2]]
    feed = Scripted(run.stop, [other[NEED], BARS[NEED], other[NEED + 1], BARS[NEED + 1]])
    feed.others = {"ETHUSD": other[:NEED]}
    run(feed)
    written = replay.read(raws(run), release=ID, symbol="BTCUSD", tf="1h", since_ms=0)
    assert settings["cross"] == []
    now = list(other)
    now[NEED] = dataclasses.replace(other[NEED], volume=1.0)
    finals = {**final(), "ETHUSD": final(now)["BTCUSD"]}
    assert written.doubtful(finals, written.lines) == {"BTCUSD": [], "ETHUSD": [BARS[NEED].open_ms]}
    first = replay.first_needed(written.lines[1], finals["BTCUSD"], NEED)
    assert first is not None
    _, seen = replay.cases(
        written, written.lines[1], finals, written.doubtful(finals, written.lines), first
    )
    assert seen.corrected == (("ETHUSD", BARS[NEED].open_ms),)
    assert seen.seen["ETHUSD"][0][-1] == other[NEED].volume


def test_what_the_service_stores_is_read_from_files_of_either_kind(tmp_path: Path) -> None:
    bars = read_bars(SAMPLE)[:50]
    write_bars(bars, tmp_path / "BTCUSD_1h.parquet")
    stamps = bars["timestamp"].dt.epoch("ms").to_list()
    lines = [
        ",".join(map(str, (ms, *row[1:]))) for ms, row in zip(stamps, bars.rows(), strict=True)
    ]
    csv = tmp_path / "csv"
    csv.mkdir()
    again = f"{stamps[20]},{','.join('9' * 5)}"  # the last line about a bar counts
    (csv / "BTCUSD_1h.csv").write_text("\n".join([*lines, again]) + "\n")
    asked = ("BTCUSD", "1h", stamps[20], stamps[30], 5)
    there, here = (release_code.stored_rows(place, *asked) for place in (tmp_path, csv))
    assert [row[0] for row in there] == [row[0] for row in here] == stamps[15:31]
    assert here[5] == [stamps[20], *[9.0] * 5]
    assert here[6:] == there[6:]
    with pytest.raises(MacdError, match="no bars of ETHUSD"):
        release_code.stored_rows(tmp_path, "ETHUSD", *asked[1:])


def test_a_question_from_another_version_is_refused(app: App) -> None:
    with pytest.raises(UsageError, match="no such question"):
        next(release_code.answers({"ask": "tomorrow"}, app.root, app.release))


def test_the_facts_say_how_much_is_needed(app: App) -> None:
    (facts,) = release_code.answers({"ask": "facts"}, app.root, app.release)
    assert facts["need"] == NEED
    assert (facts["symbol"], facts["release"]) == ("BTCUSD", app.release.name)
