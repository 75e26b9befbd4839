"""The previous release's models beside the live one's: what they say, what they can't disturb."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from macd.app.market.bars import read_bars
from macd.app.predict.scoring import MODELS, Scorer
from macd.app.service.challenger import LINK, LOADING, Challenger
from macd.app.service.loop import NEED
from macd.app.service.predictor import Predictor
from macd.app.service.settings import Settings, flags
from tests.support.deployed_app import App, add_release, bolder, make_app
from tests.support.training_run import SAMPLE
from tests.unit.app.service.test_service_loop import BARS, Run, Scripted

pytestmark = pytest.mark.slow

FRAME = read_bars(SAMPLE)[: NEED + 3]
LIVE = "20260301T000000Z-00000000"


@pytest.fixture(scope="module")
def app() -> Iterator[App]:
    root = Path(tempfile.mkdtemp(prefix="macd-c-"))
    yield make_app(root)
    shutil.rmtree(root)


def link(app: App, target: str) -> None:
    (app.root / LINK).unlink(missing_ok=True)
    (app.root / LINK).symlink_to(target)


def loaded(app: App, **more: Any) -> Challenger:
    made = Challenger(Settings.read(app.root), LIVE, flags({}), **more)
    deadline = time.monotonic() + 120
    while made.state.get("error") == LOADING:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return made


def test_it_says_what_its_own_models_say_at_the_live_ones_head(app: App) -> None:
    previous = add_release(app.root, 2, bolder)
    link(app, f"releases/{previous}")
    states: list[Any] = []
    challenger = loaded(app, on_change=states.append)
    assert states == [
        {"release": previous, "error": LOADING},
        {"release": previous, "error": None},
    ]
    own = Scorer.load(app.root / "releases" / previous / MODELS, "1h")
    live = Scorer.load(app.models, "1h")
    fields = Predictor(own, flags({}), "1h").predict(FRAME, {}).fields
    heads, headline = fields["ml_heads"], fields["ml_horizon"]
    exact = {"avg": fields["ml_avg_prob"], "stacking": fields["ml_stacking_prob"]}
    assert exact["avg"] != heads["mean"][headline]  # which is rounded
    others = Predictor(live, flags({}), "1h").predict(FRAME, {}).fields["ml_heads"]
    for head in own.heads:
        said = challenger.field(head, FRAME, {})
        rounded = {"avg": heads["mean"][head], "stacking": heads["stacking"][head]}
        assert said == {"release": previous, **(exact if head == headline else rounded)}
        assert said["avg"] != others["mean"][head]
    assert challenger.field("h99", FRAME, {}) == {
        "release": previous,
        "error": "it has no head h99",
    }
    assert "error" in (challenger.field(None, FRAME, {}) or {})


def damaged(release: Path) -> None:
    path = release / MODELS / "lstm_1h.onnx"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def of_other_features(release: Path) -> None:
    """Golden predictions made by code that had a feature which there is no more."""
    for path in (release / MODELS).glob("*_1h_meta.json"):
        path.write_text(path.read_text().replace('"ret_1"', '"ret_of_old"'))


def with_another_formula(release: Path) -> None:
    """Its code computed something else under the same names, so it answered otherwise."""
    path = release / "golden/golden.json"
    document = json.loads(path.read_bytes())
    document["expected"]["lgbm_5h"] = [p + 0.01 for p in document["expected"]["lgbm_5h"]]
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "afterwards", "tf", "why"),
    [
        (None, damaged, "1h", "not as signed: data/ml_models/lstm_1h.onnx (changed)"),
        (None, None, "4h", "its timeframe is 4h, the service's 1h"),
        (of_other_features, None, "1h", "features this code does not compute"),
        (with_another_formula, None, "1h", "can't run it: lgbm_5h is off by 0.01"),
        (lambda top: shutil.rmtree(top / MODELS), None, "1h", "no model can be loaded"),
        (None, shutil.rmtree, "1h", "holds no release"),
        (None, lambda top: (top / "manifest.json").write_text("{}"), "1h", "holds no release"),
    ],
)
def test_one_that_can_not_be_run_is_named_and_not_run(
    app: App,
    change: Callable[[Path], None] | None,
    afterwards: Callable[[Path], None] | None,
    tf: str,
    why: str,
) -> None:
    serial = 100 + len(list((app.root / "releases").iterdir()))
    previous = add_release(app.root, serial, change, tf)
    if afterwards:
        afterwards(app.root / "releases" / previous)
    link(app, f"releases/{previous}")
    said = loaded(app).field("5h", FRAME, {})
    assert said is not None
    assert said.keys() == {"release", "error"}
    assert said["release"] == previous
    assert why in said["error"]


@pytest.mark.parametrize(
    "target", [f"releases/{LIVE}", "/etc", "../elsewhere", "releases/../../x", "releases/", "x"]
)
def test_a_link_to_no_other_release_is_none(app: App, target: str) -> None:
    link(app, target)
    challenger = loaded(app)
    assert (challenger.field("5h", FRAME, {}), challenger.refuse("gap"), challenger.state) == (
        None,
        None,
        {},
    )


def with_challenger(app: App, run: Run, challenger: Challenger, count: int) -> Any:
    """Lines of the loop, which has one."""
    made = Scripted(run.stop, BARS[NEED : NEED + count])
    return run(made, challenger=challenger)


def test_lines_carry_it_and_are_the_same_otherwise(app: App, tmp_path: Path) -> None:
    link(app, f"releases/{app.release.name}")
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    challenger = loaded(app)
    lines = with_challenger(app, Run(tmp_path / "with"), challenger, 3)
    run = Run(tmp_path / "without")
    plain = run(Scripted(run.stop, BARS[NEED : NEED + 3]))
    for line, other in zip(lines, plain, strict=True):
        parts, others = line["data"]["components"], other["data"]["components"]
        said = parts.pop("ml_challenger")
        assert said["release"] == app.release.name
        assert said["avg"] == pytest.approx(parts["ml_avg_prob"], abs=1e-6)
        assert said["stacking"] == pytest.approx(parts["ml_stacking_prob"], abs=1e-6)
        for one in (parts, others):
            del one["ml_latency_ms"]
        assert (parts, line["data"]) == (others, other["data"])


def test_one_that_hangs_or_breaks_costs_its_limit_once_and_no_signal(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link(app, f"releases/{app.release.name}")
    challenger = loaded(app, limit=120)
    predictor = challenger._predictor
    assert predictor is not None
    scorer = predictor._scorer
    asked: list[int] = []
    over = threading.Event()

    def hang(*_: Any) -> Any:
        asked.append(1)
        if len(asked) == 1:
            predictor._limit = 0.2  # of the next, which does not answer while the test runs
            raise SystemExit("broken")
        over.wait(300)

    monkeypatch.setattr(type(scorer), "score", _only_of(scorer, hang))
    run = Run(tmp_path)
    lines = with_challenger(app, run, challenger, 4)
    over.set()
    errors = [line["data"]["components"]["ml_challenger"]["error"] for line in lines]
    assert "broken" in errors[0]
    assert "did not answer within 0.2 s" in errors[1]
    assert all("not answered for an earlier bar" in error for error in errors[2:])
    assert len(asked) == 2
    assert all(line["data"]["components"]["ml_error"] is None for line in lines)
    assert run.status.document()["status"] == "ok"
    assert run.status.document()["last_error"] is None


def _only_of(mine: Scorer, do: Callable[..., Any]) -> Callable[..., Any]:
    real = Scorer.score

    def score(self: Scorer, *given: Any) -> Any:
        return do(*given) if self is mine else real(self, *given)

    return score


def test_where_no_model_is_asked_it_is_not_either(app: App, tmp_path: Path) -> None:
    link(app, f"releases/{app.release.name}")
    run = Run(tmp_path)
    feed = Scripted(run.stop, BARS[NEED : NEED + 1])
    feed.known = BARS[100:NEED]
    (line,) = run(feed, challenger=loaded(app))
    said = line["data"]["components"]["ml_challenger"]
    assert said == {
        "release": app.release.name,
        "error": f"not asked: {NEED - 99} of {NEED} bars of history so far",
    }
