"""One process for several symbols: a line per bar and symbol, and what one lacks costs no other."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from macd.app.market.bars import read_bars, write_bars
from macd.app.predict.scoring import MODELS, Scorer, Shared
from macd.app.service import release, replay
from macd.app.service.asking import Breaker, Plan
from macd.app.service.feed import Bar, Item, ReplayFeed, bars_of
from macd.app.service.feed_directory import DirectoryFeed
from macd.app.service.health import Status
from macd.app.service.loop import NEED, Loop
from macd.app.service.settings import FILE, Settings, flags
from macd.app.service.signal_log import SignalLog, bar_time
from macd.app.service.starting import served_of
from macd.errors import UsageError
from macd.host.deploy import health
from tests.support import several_symbols
from tests.support.several_symbols import SYMBOLS
from tests.support.training_run import SAMPLE

pytestmark = pytest.mark.slow
HOUR = 3_600_000
BARS = {
    name: bars_of(name, several_symbols.bars_of(name, read_bars(SAMPLE)[: NEED + 40]))
    for name in SYMBOLS
}


@pytest.fixture
def app(tmp_path: Path) -> Path:
    identifier = several_symbols.add_release(tmp_path)
    (tmp_path / "current").symlink_to(f"releases/{identifier}")
    write_settings(tmp_path)
    return tmp_path


def write_settings(root: Path, cross: Sequence[str] = (), **feed: Any) -> Settings:
    document = {
        "symbol": SYMBOLS[0], "symbols": SYMBOLS, "tf": "1h", "cross": cross,
        "endpoint": "127.0.0.1:1", "feed": {"kind": "replay", "directory": ".", **feed},
    }  # fmt: skip
    (root / FILE).write_text(json.dumps(document))
    return Settings.read(root)


class Scripted:
    """A feed that gives what it was told to; it ends the loop at its end."""

    live, state = False, "scripted"

    def __init__(self, stop: Event, answers: Sequence[Sequence[Item]]) -> None:
        self._stop, self._answers = stop, list(answers)
        self.after: int | None = None

    def begin(self, need: int, after_ms: int | None) -> Mapping[str, Sequence[Bar]]:
        self.after = after_ms
        known = NEED if after_ms is None else at(after_ms) + 1
        return {name: bars[known - NEED : known] for name, bars in BARS.items()}

    def wait(self, seconds: float) -> Sequence[Item]:
        if not self._answers:
            self._stop.set()
            return []
        return self._answers.pop(0)


def at(open_ms: int) -> int:
    return (open_ms - BARS[SYMBOLS[0]][0].open_ms) // HOUR


def time_of(place: int, symbols: Sequence[str] = SYMBOLS) -> list[Item]:
    return [BARS[name][NEED + place] for name in symbols]


def serve(
    root: Path,
    answers: Sequence[Sequence[Item]],
    *,
    cross: Sequence[str] = (),
    now_ms: float | None = None,
) -> tuple[list[dict[str, Any]], dict[str, Any], Scripted]:
    """The lines of this life, the health document at its end, and the feed.

    now_ms: by which bars are of now; None for a replay.
    """
    settings, stop = write_settings(root, cross), Event()
    status, log = Status({}), SignalLog(settings.live, symbols=settings.symbols)
    before, feed = log.seq, Scripted(stop, answers)
    feed.live = now_ms is not None
    served, why = served_of(release.identify(root / "current"), settings, flags({}), status)
    status.set(status="failed" if why else "ok")
    loop = Loop(
        settings,
        "20260301T000000Z-00000000",
        served,
        feed,
        log,
        status,
        stop=stop,
        now_ms=lambda: now_ms or 0,
    )
    loop.begin()
    loop.run()
    log.close()
    lines = [json.loads(x) for path in settings.live.glob("*.jsonl") for x in path.open()]
    return [line for line in lines if line["seq"] > before], status.document(), feed


def signals(lines: list[dict[str, Any]]) -> Counter[tuple[str, str]]:
    return Counter(
        (line["symbol"], line["bar_time"]) for line in lines if line["level"] == "SIGNAL"
    )


def test_each_bar_of_each_symbol_has_one_line_by_its_own_models(app: Path) -> None:
    lines, document, _ = serve(app, [time_of(0), time_of(1)])
    times = [bar_time(BARS[SYMBOLS[0]][NEED + n].open_ms) for n in (0, 1)]
    assert signals(lines) == {(name, when): 1 for name in SYMBOLS for when in times}
    assert [line["seq"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line in lines:
        scorer = Scorer.load(app / "current/symbols" / line["symbol"] / MODELS, "1h")
        assert scorer.symbol == line["symbol"]
        assert line["data"]["components"]["ml_error"] is None
    said = {line["data"]["components"]["ml_lgb_prob"] for line in lines}
    assert len(said) == len(lines)
    assert document["status"] == "ok"
    assert document["golden"]["ok"] is True
    assert document["symbols"] == {
        name: {"ok": True, "stacking": "shadow", "last_bar": times[1]} for name in SYMBOLS
    }


def test_what_an_earlier_life_wrote_is_not_written_again_and_nothing_is_left_out(app: Path) -> None:
    """Killed between the lines of a bar: one symbol has its line, the others not yet."""
    serve(app, [time_of(0), time_of(1, SYMBOLS[:1])])
    lines, _, feed = serve(app, [time_of(1), time_of(2)])
    assert feed.after == BARS[SYMBOLS[0]][NEED].open_ms
    times = [bar_time(BARS[SYMBOLS[0]][NEED + n].open_ms) for n in (1, 2)]
    assert signals(lines) == {
        (name, when): 1
        for name in SYMBOLS
        for when in times
        if (name, when) != (SYMBOLS[0], times[0])
    }
    assert {line["level"] for line in lines} == {"SIGNAL"}


def test_a_line_of_the_future_silences_nobody_after_a_restart(app: Path) -> None:
    """Written while the clock was ahead, and a bar that was a day early came."""
    early = [BARS[SYMBOLS[0]][NEED + 30]]
    serve(app, [time_of(0), time_of(1), early])
    now = BARS[SYMBOLS[0]][NEED + 3].open_ms
    lines, _, feed = serve(app, [time_of(2)], now_ms=now)
    assert feed.after == BARS[SYMBOLS[0]][NEED + 1].open_ms
    when = bar_time(BARS[SYMBOLS[0]][NEED + 2].open_ms)
    assert signals(lines) == {(name, when): 1 for name in SYMBOLS}


def test_symbols_that_are_each_others_cross_assets_see_the_same_time(app: Path) -> None:
    lines, _, _ = serve(app, [time_of(0)], cross=SYMBOLS[:2])
    seen = {x["symbol"]: set(x["data"]["components"].get("cross_bars", ())) for x in lines}
    first, second, third = SYMBOLS
    assert seen == {first: {second}, second: {first}, third: {first, second}}


def test_a_symbol_with_damaged_models_is_named_and_the_others_go_on(app: Path) -> None:
    identity = release.identify(app / "current")
    model = app / "current/symbols" / SYMBOLS[1] / MODELS / "lgbm_1h_5h.txt"
    model.write_bytes(model.read_bytes()[:2000])
    checked = release.check(app / "current", app)
    assert checked["ok"] is False
    assert f"1 of 3 symbols fail ({SYMBOLS[1]})" in checked["detail"]
    assert list(checked["models"]) == [SYMBOLS[1]]
    lines, document, _ = serve(app, [time_of(0)])
    errors = {x["symbol"]: x["data"]["components"]["ml_error"] for x in lines}
    assert errors.pop(SYMBOLS[1]).startswith("lgbm: ")
    assert set(errors.values()) == {None}
    assert document["status"] == "failed"
    assert {name: said["ok"] for name, said in document["symbols"].items()} == {
        name: name != SYMBOLS[1] for name in SYMBOLS
    }
    assert "lgbm" in document["symbols"][SYMBOLS[1]]["models"]
    missing = release.load(identity, "1h", "XRPUSD")
    assert missing.scorer is None
    assert "no models of XRPUSD; it has BTCUSD" in missing.unknown


def test_a_symbol_whose_bars_stop_is_told_once_and_once_when_they_are_back(app: Path) -> None:
    two = SYMBOLS[:2]
    answers = [time_of(0), *[time_of(n, two) for n in range(1, 5)], time_of(5), time_of(6)]
    lines, document, _ = serve(app, answers)
    warnings = [
        (x["symbol"], x["data"]["event"], x["seq"])
        for x in lines
        if x["level"] == "WARN" and x["data"]["event"] != "gap"
    ]
    assert [entry[:2] for entry in warnings] == [
        (SYMBOLS[2], "bars_stopped"),
        (SYMBOLS[2], "bars_back"),
    ]
    assert document["symbols"][SYMBOLS[2]]["stopped"] is False
    assert signals(lines).total() == 7 * 3 - 4


def test_an_audit_asks_about_one_symbol(app: Path) -> None:
    write_settings(app, cross=SYMBOLS[:1])

    def asked(**question: str) -> dict[str, Any]:
        return next(replay.answers({"ask": "facts", **question}, app, app / "current"))

    first, second = asked(), asked(symbol=SYMBOLS[1])
    assert (first["symbol"], first["cross"], first["symbols"]) == (SYMBOLS[0], [], list(SYMBOLS))
    assert (second["symbol"], second["cross"]) == (SYMBOLS[1], [SYMBOLS[0]])
    with pytest.raises(UsageError, match="the service has no symbol XRPUSD"):
        asked(symbol="XRPUSD")


def test_the_same_models_are_loaded_once_and_one_damaged_text_condemns_no_other(
    app: Path, tmp_path: Path
) -> None:
    trees = [app / "current/symbols" / name / MODELS for name in SYMBOLS]
    shared = Shared()
    shared.prove(trees, "1h")
    loaded = [Scorer.load(tree, "1h", shared=shared) for tree in trees]
    assert len({id(scorer.models["tft"]) for scorer in loaded}) == 1
    assert [scorer.errors for scorer in loaded] == [{}, {}, {}]
    broken = shutil.copytree(trees[0], tmp_path / "broken")
    (broken / "lgbm_1h_5h.txt").write_text("tree\nversion=v4\n")
    shared = Shared()
    shared.prove([broken, *trees], "1h")
    assert shared.survived([(trees[0] / "lgbm_1h_12h.txt").read_text()])
    assert "lgbm" in Scorer.load(broken, "1h", shared=shared).errors


def test_a_replay_gives_the_bars_of_a_time_together(tmp_path: Path) -> None:
    for name in SYMBOLS:
        frame = read_bars(SAMPLE)[5 if name == SYMBOLS[2] else 0 : 20]
        write_bars(frame, tmp_path / f"{name}_1h.parquet")
    feed = ReplayFeed(write_settings(tmp_path, speed=0, start=0, loop=False))
    history = feed.begin(3, None)
    assert [len(history[name]) for name in SYMBOLS] == [3, 3, 0]
    came = [item for item in feed.wait(0) if isinstance(item, Bar)]
    assert [bar.symbol for bar in came[:4]] == [*SYMBOLS[:2], *SYMBOLS[:2]]
    assert [bar.open_ms for bar in came] == sorted(bar.open_ms for bar in came)
    assert Counter(bar.symbol for bar in came) == dict(zip(SYMBOLS, (16, 16, 14), strict=True))


def test_a_directory_holds_a_symbol_for_its_cross_assets_alone(tmp_path: Path) -> None:
    first, second, third = SYMBOLS
    settings = write_settings(tmp_path, cross=[first], kind="directory")

    def append(name: str, hour: int) -> None:
        with (tmp_path / f"{name}_1h.csv").open("a") as file:
            file.write(f"{1_600_002_000_000 + hour * HOUR},1,2,1,1.5,3\n")

    for name in SYMBOLS:
        append(name, 0)
    clock = [0.0]
    feed = DirectoryFeed(
        settings, clock=lambda: clock[0], sleep=lambda s: clock.__setitem__(0, clock[0] + s)
    )
    feed.begin(3, None)
    append(second, 1)
    append(third, 1)
    assert feed.wait(1) == []  # their cross asset's bar has not come
    append(first, 1)
    came = [item for item in feed.wait(1) if isinstance(item, Bar)]
    assert {bar.symbol for bar in came} == set(SYMBOLS)
    append(first, 2)  # nobody waits for what is no cross asset
    assert [item.symbol for item in feed.wait(1) if isinstance(item, Bar)] == [first]


def test_many_symbols_of_an_exchange_are_asked_together_and_a_dead_one_holds_none() -> None:
    names = ("C", "A", "B")
    plan, breakers = Plan(names, ("C",), HOUR), {name: Breaker() for name in names}
    now = 7202.0
    assert plan.due(now, breakers, ()) == (["C"], 0.0, True)
    assert plan.due(now, breakers, ("C",))[::2] == ([], True)  # it is on its way
    plan.answered("C", 0, now, came=False)  # it is due: the others wait for it
    assert plan.due(now, breakers, ()) == ([], 3.0, False)
    plan.answered("C", HOUR, now + 3, came=True)
    assert plan.due(now + 3, breakers, ()) == (["A", "B"], 0.0, False)
    assert plan.due(now + 3, breakers, ("A",)) == (["B"], 0.0, False)
    breakers["A"].failed(now + 3, jitter=0.5)
    plan.failed("A")
    assert plan.due(now + 3, breakers, ()) == (["B"], 0.0, False)
    plan.answered("B", HOUR, now + 3, came=True)
    due, left, _ = plan.due(now + 3, breakers, ())
    assert (due, left) == ([], pytest.approx(1.0))
    assert plan.due(now + 4, breakers, ())[0] == ["A"]
    breakers["A"].succeeded()
    plan.answered("A", HOUR, now + 5, came=True)
    due, left, _ = plan.due(now + 5, breakers, ())
    assert (due, left) == ([], pytest.approx(10_801 - now - 5))
    assert plan.due(10_801, breakers, ())[0] == ["C"]


def test_forty_symbols_fit_into_what_a_probe_reads() -> None:
    status = Status({})
    for number in range(40):
        status.symbol(
            f"SYMBOL{number}USDT",
            ok=False,
            stacking="off",
            last_bar="2026-01-01T00:00:00Z",
            error="e" * 200,
            golden={"ok": False, "max_diff": None, "detail": "d" * 200},
            models={"lgbm": "w" * 200},
        )
    assert len(json.dumps(status.document())) < health._LIMIT // 1.5


@pytest.mark.parametrize("symbols", [["ETHUSD", "BTCUSD"], ["BTCUSD", "ETHUSD", "ETHUSD"]])
def test_settings_that_name_symbols_wrongly_are_refused(tmp_path: Path, symbols: list[str]) -> None:
    write_settings(tmp_path)
    document = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps({**document, "symbols": symbols}))
    with pytest.raises(UsageError, match="symbols names one twice, or another first"):
        Settings.read(tmp_path)


def test_the_settings_of_one_symbol_are_as_before(tmp_path: Path) -> None:
    settings = write_settings(tmp_path, cross=SYMBOLS[:1])
    assert settings.of(SYMBOLS[0]).cross == ()
    assert settings.of(SYMBOLS[1]).cross == SYMBOLS[:1]
    alone = dataclasses.replace(settings, symbols=(), cross=("ETHUSD",))
    assert alone.served == (SYMBOLS[0],)
    assert alone.names == ("ETHUSD", SYMBOLS[0])
    assert alone.of(SYMBOLS[0]) is alone
