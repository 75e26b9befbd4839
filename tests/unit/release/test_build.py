"""A release from a real training: what is in it, what stops it, and that it is all or nothing."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from macd import application
from macd.application import Proof
from macd.checklist import Item
from macd.errors import ExitCode, MacdError, RefusedError
from macd.host.store.manifest import parse
from macd.inventory import Criterion
from macd.release import card, judge, verify, wheel
from macd.release import run as runs
from macd.release.store import Release
from tests.support.training_run import bars_directory, trained_run
from tests.unit.release.making import CREATED, LOCK, Workshop, copy_of_run, workshop

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workshop, Release]:
    """One release for all tests that only look at it."""
    shop = workshop(tmp_path_factory.mktemp("shop"))
    return shop, shop.make()


@pytest.fixture
def shop(
    made: tuple[Workshop, Release], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Workshop:
    """A place of its own; what it makes holds the wheel of `made`, not one built anew."""
    (code,) = (made[1].directory / "app").glob("*.whl")
    monkeypatch.setattr(wheel, "build", lambda _: (code.name, code.read_bytes()))
    return workshop(tmp_path)


def resealed(run: Path, path: str) -> Path:
    """The run's record follows a change of one of its files, as a dishonest run's would."""
    result = json.loads((run / "result.json").read_text())
    for file in result["files"]:
        if file["path"] == path:
            content = (run / path).read_bytes()
            file |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (run / "result.json").write_text(json.dumps(result))
    return run


# What is in it.


def test_a_release_holds_models_code_lock_golden_and_cards(made: tuple[Workshop, Release]) -> None:
    _, release = made
    paths = {file.path for file, _ in release.contents}
    assert {
        "app/serve.py",
        "app/macd-0.1.0-py3-none-any.whl",
        "card.html",
        "card.md",
        "lock.json",
        "golden/golden.json",
        "data/ml_models/lgbm_1h_5h.txt",
        "data/ml_models/lstm_1h.onnx",
        "data/ml_models/tft_1h.onnx",
        "data/ml_models/stacking_meta_1h.json",
        "data/gpu_results/oof_1h.parquet",
    } <= paths
    assert release.bundle.name == "macd_models_20260301_120005.tar.gz"
    assert release.manifest.lock == release.lock.sha256 == LOCK.sha256


def test_what_was_made_verifies(made: tuple[Workshop, Release]) -> None:
    shop, release = made
    assert verify.directory(release.directory, shop.signers).ok
    assert verify.bundle(release.bundle, shop.signers).id == release.id


def test_the_manifest_tells_where_it_came_from(made: tuple[Workshop, Release]) -> None:
    _, release = made
    details = release.manifest.details
    run = runs.read(trained_run())
    assert details["run"] == run.id
    assert details["host"] == "h800"
    assert details["data_digest"] == run.digest
    assert details["drift"] == run.metrics["drift"]
    assert details["drift"]["assets"]["BTCUSD"]["count"] > 10
    assert details["accepted"] is None
    assert details["code"]["commit"] == "c" * 40
    assert details["audit"]["ok"] is True
    low, value, high = (
        details["metrics"]["lstm"]["5h"]["val"][k] for k in ("low", "value", "high")
    )
    assert low <= value <= high
    assert [one["name"] for one in details["criteria"]] == [
        "lstm_val_auc", "n_oof", "leak_audit", "too_good",
    ]  # fmt: skip


def test_the_wheels_of_its_lock_are_kept(made: tuple[Workshop, Release]) -> None:
    shop, release = made
    (locked,) = release.lock.wheels
    path = shop.store.wheel_path(locked)
    assert path.read_bytes() == shop.wheel.read_bytes()
    assert path == shop.store.root / "wheels" / locked.sha256 / locked.file


def test_the_cards_carry_figures_and_criteria(made: tuple[Workshop, Release]) -> None:
    _, release = made
    markdown = (release.directory / "card.md").read_text()
    page = (release.directory / "card.html").read_text()
    stacking = release.manifest.details["metrics"]["stacking"]["24h"]["val"]
    shown = f"{stacking['value']:.3f} [{stacking['low']:.3f}, {stacking['high']:.3f}]"
    for text in (markdown, page):
        assert shown in text
        assert "⚠" in text
        assert release.manifest.details["data_digest"] in text
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "<script" not in page


def test_serve_py_starts_the_service_of_the_wheel_beside_it(
    made: tuple[Workshop, Release], tmp_path: Path
) -> None:
    _, release = made
    app = tmp_path / "app"
    app.mkdir()
    (app / "serve.py").write_bytes((release.directory / "app/serve.py").read_bytes())
    main = (
        "import macd.app.service\ndef main():\n    print(macd.app.service.__file__)\n    return 7\n"
    )
    with zipfile.ZipFile(app / "macd-9-py3-none-any.whl", "w") as archive:
        for name, text in (
            ("__init__", ""),
            ("app/__init__", ""),
            ("app/service/__init__", ""),
            ("app/service/__main__", main),
        ):
            archive.writestr(f"macd/{name}.py", text)
    argv = [sys.executable, "-I", str(app / "serve.py")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 7, done.stderr
    assert done.stdout.strip() == str(app / "macd-9-py3-none-any.whl/macd/app/service/__init__.py")
    (app / "macd-10-py3-none-any.whl").write_bytes(b"")
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 1
    assert "one wheel expected" in done.stderr


# Reproducible.


def test_the_same_order_gives_the_same_bytes(
    made: tuple[Workshop, Release], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_shop, first = made
    shop = workshop(tmp_path)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setenv("PYTHONHASHSEED", "77")
    from macd.release.signing import sign  # noqa: PLC0415

    request = shop.request(source=first_shop.top / "source")
    second = shop.make(request, sign_with=lambda raw: sign(raw, key=first_shop.key))
    assert second.raw == first.raw
    assert second.id == first.id
    assert second.bundle.read_bytes() == first.bundle.read_bytes()


# What stops it.


def test_a_missed_blocking_criterion_refuses_and_says_by_how_much(shop: Workshop) -> None:
    run = runs.read(trained_run())
    criteria = {"lstm_val_auc": Criterion(threshold=0.9, level="block")}
    findings = judge.judge(run.criteria, criteria, run.audit, run.metrics, run.stacking)
    request = shop.request(findings=findings)
    with pytest.raises(RefusedError) as caught:
        shop.make(request)
    assert caught.value.exit_code == ExitCode.REFUSED
    assert "missed by 0.3" in caught.value.why
    assert shop.store.ids() == []
    accepted = shop.make(shop.request(findings=findings, accepted="a drill, never for real"))
    details = parse(accepted.raw).details
    assert details["accepted"] == "a drill, never for real"
    assert "a drill, never for real" in (accepted.directory / "card.html").read_text()


def test_other_bars_than_the_runs_are_told(shop: Workshop, tmp_path: Path) -> None:
    from macd.app.market.bars import read_bars, write_bars  # noqa: PLC0415
    from tests.support.training_run import SAMPLE  # noqa: PLC0415

    write_bars(read_bars(SAMPLE)[:4001], tmp_path / "bars/BTCUSD_1h.parquet")
    with pytest.raises(MacdError, match="are not those run") as caught:
        shop.make(shop.request(data_dir=tmp_path / "bars"))
    assert "digest" in caught.value.why
    assert list(shop.store.root.glob("*2*")) == []


def test_a_sick_model_stops_it(shop: Workshop, tmp_path: Path) -> None:
    run = copy_of_run(tmp_path)
    path = "data/ml_models/lgbm_1h_5h.txt"
    (run / path).write_bytes((run / path).read_bytes()[:900])
    with pytest.raises(MacdError) as caught:
        shop.make(shop.request(resealed(run, path)))
    assert "LightGBM can't read its model" in str(caught.value)
    assert shop.store.ids() == []


def test_a_failed_item_stops_it(shop: Workshop) -> None:
    sick = Item("ONNX against torch", False, "off by 0.5", "export", "export again")
    with pytest.raises(MacdError, match="health check") as caught:
        shop.make(proving=lambda *_, **__: nullcontext(lambda: Proof({}, "", [sick])))
    assert caught.value.hint == "export again"
    assert shop.store.ids() == []


def test_the_applications_own_process_tells_other_bars(made: tuple[Workshop, Release]) -> None:
    proof = application.proving(
        made[1].directory,
        run=trained_run(),
        data_dir=bars_directory(trained_run()),
        digest="0" * 64,
        lock={},
    )
    with pytest.raises(MacdError, match="are not those run"):
        application.prove([proof])


# All or nothing.


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_interrupted_while_signing_it_leaves_nothing(
    shop: Workshop, error: type[BaseException]
) -> None:
    def interrupted(_: bytes) -> bytes:
        raise error("now")

    with pytest.raises(error):
        shop.make(sign_with=interrupted)
    left = [path.name for path in shop.store.root.iterdir()]
    assert left == [".lock"]


def test_what_a_killed_build_left_is_swept_and_never_listed(shop: Workshop) -> None:
    half = shop.store.root / ".building-killed"
    (half / "data").mkdir(parents=True)
    (half / "manifest.json").write_text("{}")
    assert shop.store.ids() == []
    release = shop.make()
    assert not half.exists()
    assert shop.store.ids() == [release.id]


def test_two_at_once_are_one_and_a_refusal(shop: Workshop) -> None:
    def sign_while_another_tries(raw: bytes) -> bytes:
        with pytest.raises(RefusedError, match="another release"):
            shop.make()
        from macd.release.signing import sign  # noqa: PLC0415

        return sign(raw, key=shop.key)

    release = shop.make(sign_with=sign_while_another_tries)
    assert shop.store.ids() == [release.id]
    assert release.manifest.created == CREATED


def cards_of(release: Release, **changes: Any) -> tuple[str, str]:
    moment = datetime(2026, 3, 1, tzinfo=UTC)
    pages = card.render(
        {**release.manifest.details, **changes},
        app="macd",
        env="prod",
        serial=1,
        created=moment,
        expires=moment,
    )
    return pages[card.MARKDOWN].decode(), pages[card.HTML].decode()


def test_what_a_person_accepted_about_the_bars_stands_in_manifest_and_card(
    made: tuple[Workshop, Release],
) -> None:
    _, release = made
    assert release.manifest.details["bars_checked"] == {"limits": {}, "accepted": []}
    accepted = {
        "symbol": "ATOMUSDT",
        "check": "spike",
        "count": 3,
        "from": "2025-10-10T21:00",
        "to": "2025-10-11T03:00",
        "detail": "low 55.0% beyond the prices around it",
        "reason": "the crash <b>everywhere</b>",
    }
    for page in cards_of(
        release,
        bars_checked={"market": "fx", "limits": {"gap_error": 49}, "accepted": [accepted]},
    ):
        assert "bars checked by the hours of fx" in page
        assert "other limits than the usual ones: gap_error 49" in page
        assert "ATOMUSDT spike at 2025-10-10T21:00 and 2 more to 2025-10-11T03:00" in page
        assert "reason given: the crash" in page
    assert "<b>everywhere" not in page


def test_choices_made_after_looking_stand_in_manifest_and_card(
    made: tuple[Workshop, Release],
) -> None:
    _, release = made
    said, *more = release.manifest.details["caveats"]
    assert "chosen by validation figures on BTC" in said
    for page in cards_of(release):
        assert all(text in page for text in (said, *more))
        assert "1 look: no other configuration" in page
    for page in cards_of(release, holdout={"openings": 3}, caveats=[]):  # of an earlier version
        assert "3 looks: 3 configurations of a model were evaluated" in page
        assert said not in page


def test_models_stand_side_by_side_on_the_bars_of_which_all_speak(
    made: tuple[Workshop, Release],
) -> None:
    _, release = made
    metrics = json.loads((trained_run() / "metrics.json").read_text())
    details = release.manifest.details
    alone = metrics["models"]["lgbm"]["5h"]["val"]
    for head, parts in metrics["comparison"].items():
        for part, compared in parts.items():
            for model, figures in compared["models"].items():
                shown = details["metrics"][model][head][part]
                assert (shown["value"], shown["n"]) == (figures["value"], compared["n"])
    assert details["metrics"]["lgbm"]["5h"]["val"]["n"] < alone["n"], "it also speaks of fold 0"


def test_a_card_of_another_timeframe_speaks_of_bars(made: tuple[Workshop, Release]) -> None:
    _, release = made
    for page in cards_of(release):
        assert "not hours" not in page
    metrics = {
        model: {f"h{head[:-1]}": figures for head, figures in heads.items()}
        for model, heads in release.manifest.details["metrics"].items()
    }
    for page in cards_of(
        release, tf="15m", metrics=metrics, best_head={"stacking": "h12", "lstm": "h5"}
    ):
        assert "h5 = 1h15m, h12 = 3h, h24 = 6h" in page
        assert page.count("★") == 2, "in the words above, and at the headline"
        assert "12 bars (3h) ★" in page
        assert "5 bars (1h15m)" in page
