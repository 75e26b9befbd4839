"""A release of an application of one's own: what is in it, what is said of it, what stops it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from macd.checklist import Item
from macd.cli import own_release
from macd.errors import MacdError, RefusedError, UsageError
from macd.host.store.manifest import parse
from macd.inventory import Inventory
from macd.inventory.own_app import OwnApp
from macd.release import card, own, verify
from macd.release import run as runs
from macd.release import source as sources
from macd.release.judge import judge_own
from macd.release.lock import Lock
from macd.release.own import OwnRequest
from macd.release.own_check import OwnCheck
from macd.release.signing import sign
from macd.release.store import Release, Store
from macd.release.wheelhouse import Target
from tests.support import their_app
from tests.support.signed_files import IDENTITY, make_key
from tests.support.wheels import put

CREATED = datetime(2026, 3, 1, 12, 0, 5, tzinfo=UTC)
HERE = Target.here()
EMPTY = Lock(HERE.python, HERE.platform, ())
RUN = "20260301T120000Z-theirs"


class Shop:
    """A team's repository, a finished training of it, keys and a place for releases."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.there = their_app.repository(top / "their", bars=50)
        self.key = make_key(top)
        public = self.key.with_suffix(".pub").read_text().strip()
        allowed = top / "allowed_signers"
        allowed.write_text(f'{IDENTITY} namespaces="release-manifest@macd" {public}\n')
        self.signers = verify.Signers(allowed, IDENTITY)
        self.store = Store(top / "releases")

    def app(self, **change: Any) -> OwnApp:
        section = their_app.app_section(their_app.Ports(8080, 8081), **change)
        return OwnApp.model_validate({**section, "source": str(self.there)})

    def train(self, val_auc: float = 0.634) -> Path:
        shutil.rmtree(self.top / "runs", ignore_errors=True)
        inventory = cast(Inventory, SimpleNamespace(root=self.top))
        return their_app.finished_run(inventory, RUN, val_auc=val_auc)

    def request(self, app: OwnApp | None = None, **changes: Any) -> OwnRequest:
        app = app or self.app()
        run = None
        if app.train:
            if not (self.top / "runs").is_dir():
                self.train()
            run = runs.read(runs.newest(self.top / "runs", app=app.name), app=app.name)
        bounds = app.train.criteria if app.train else {}
        request = OwnRequest(
            run=run,
            findings=judge_own(own.metrics_of(run), bounds),
            app=app.name,
            env="prod",
            serial=7,
            created=CREATED,
            lifetime=timedelta(days=30),
            accepted="",
            lock=EMPTY,
            application=app,
            source=sources.read(app),
            host="h800" if run else None,
            symbol="ETHUSDT",
            tf="1h",
        )
        return replace(request, **changes)

    def make(
        self, request: OwnRequest | None = None, check: Callable[[Path], Item] | None = None
    ) -> Release:
        made, self.items = own.make(
            request or self.request(),
            self.store,
            sign=lambda raw: sign(raw, key=self.key),
            wheels=[],
            check=check or (lambda _: Item("check", True, "not run in this test", done=False)),
        )
        return made

    def own_check(self, command: str, **changes: Any) -> OwnCheck:
        made = OwnCheck(
            command=command,
            writes=their_app.WRITES,
            programs={},
            lock=EMPTY,
            wheels=[],
            state=self.top / "check",
        )
        return replace(made, **changes)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


# What is in it.


def test_it_holds_the_source_and_what_the_training_left(shop: Shop) -> None:
    release = shop.make()
    paths = {file.path for file, _ in release.contents}
    assert {
        "card.html",
        "card.md",
        "lock.json",
        "source/.gitignore",
        "source/live_runner.py",
        "source/data/ml_models/lstm_1h.onnx",
        "source/data/gpu_results/train_lstm.log",
    } <= paths
    assert not [path for path in paths if "klines" in path or path.startswith(("app/", "golden"))]
    trained = (shop.top / "runs" / RUN / "artefacts/data/ml_models/lstm_1h_meta.json").read_bytes()
    assert (release.directory / "source/data/ml_models/lstm_1h_meta.json").read_bytes() == trained
    assert verify.directory(release.directory, shop.signers).ok
    assert verify.bundle(release.bundle, shop.signers).id == release.id


def test_its_details_are_those_of_an_own_application(shop: Shop) -> None:
    (shop.there / "web.py").write_text("changed\n")
    details = shop.make().manifest.details
    assert details["own"] == {
        "name": "ml-signals",
        "writes": their_app.WRITES,
        "check": "python3 check_ml_health.py --skip-live-check",
        "units": [],
    }
    assert (details["run"], details["host"], details["symbol"]) == (RUN, "h800", "ETHUSDT")
    assert details["code"]["dirty"] is True
    assert details["code"]["changed"] == ["web.py"]
    assert len(details["code"]["commit"]) == 40
    assert details["metrics"] == {"gap": 0.0559, "lgb_val_auc": 0.634, "lstm_val_auc": 0.634}
    assert [(c["name"], c["ok"], c["level"]) for c in details["criteria"]] == [
        ("lstm_val_auc", True, "block"),
        ("gap", False, "warn"),
    ]
    assert details["train_seconds"] == 60
    assert not {"golden", "panel", "heads", "best_head", "data_digest"} & details.keys()


def test_without_a_training_it_is_the_source_alone(shop: Shop) -> None:
    release = shop.make(shop.request(shop.app(train=None)))
    details = release.manifest.details
    assert (details["run"], details["host"], details["metrics"]) == (None, None, {})
    assert "source/live_runner.py" in {file.path for file, _ in release.contents}
    assert "No training belongs to it" in (release.directory / "card.md").read_text()


def test_models_that_git_ignores_come_by_their_globs(shop: Shop) -> None:
    shutil.copytree(their_app.MODELS, shop.there / "data", dirs_exist_ok=True)
    app = shop.app(train=None, models=["data/ml_models/*"])
    paths = {file.path for file, _ in shop.make(shop.request(app)).contents}
    assert "source/data/ml_models/lgb_1h.txt" in paths


def test_models_and_where_they_came_from_are_named(shop: Shop) -> None:
    shutil.copytree(their_app.MODELS, shop.there / "data", dirs_exist_ok=True)
    lgb = shop.there / "data/ml_models/lgb_1h.txt"
    app = shop.app(train=None, models=["data/ml_models/*", "*.py"])
    request = shop.request(app)
    first = shop.make(request)
    models = first.manifest.details["models"]
    assert [model["path"] for model in models] == sorted(
        f"data/ml_models/{path.name}" for path in (their_app.MODELS / "ml_models").iterdir()
    )  # and no script, which git tracks
    digest = hashlib.sha256(lgb.read_bytes()).hexdigest()
    one = {"path": "data/ml_models/lgb_1h.txt", "size": lgb.stat().st_size, "sha256": digest}
    assert {**one, "from": "source"} in models
    lines = own_release.model_lines(first.manifest.details)
    assert lines[0].startswith(f"{len(models)} from data/ml_models, not in git, as they lay")
    assert any(digest[:12] in text and "lgb_1h.txt" in text for text in lines[1:])
    for name in (card.HTML, card.MARKDOWN):
        page = (first.directory / name).read_text()
        assert digest[:12] in page
        assert "the source, not in git" in page
    lgb.touch()
    shop.store = Store(shop.top / "other")
    assert shop.make(request).raw == first.raw


def test_models_of_a_training_are_said_to_be_its_own(shop: Shop) -> None:
    shutil.copytree(their_app.MODELS, shop.there / "data", dirs_exist_ok=True)
    (shop.there / "data/ml_models/old.txt").write_text("a model of last year\n")
    details = shop.make(shop.request(shop.app(models=["data/ml_models/*"]))).manifest.details
    came = {model["path"]: model["from"] for model in details["models"]}
    assert came["data/ml_models/lgb_1h.txt"] == "run"
    assert came["data/ml_models/old.txt"] == "source"
    text = "\n".join(own_release.model_lines(details))
    assert "left by its training" in text
    assert "1 from data/ml_models, not in git" in text


def test_what_the_training_left_counts_before_what_lies_in_the_source(shop: Shop) -> None:
    shutil.copytree(their_app.MODELS, shop.there / "data", dirs_exist_ok=True)
    shop.train(val_auc=0.7)
    release = shop.make(shop.request(shop.app(models=["data/ml_models/*"])))
    meta = json.loads((release.directory / "source/data/ml_models/lstm_1h_meta.json").read_bytes())
    assert meta["val_auc"] == 0.7


def test_the_same_request_gives_the_same_bytes(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = shop.request()
    first = shop.make(request)
    for file in request.source.files.values():
        file.touch()
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    shop.store = Store(tmp_path / "other")
    second = shop.make(request)
    assert second.raw == first.raw
    assert second.bundle.read_bytes() == first.bundle.read_bytes()


def test_names_of_other_teams_travel(shop: Shop) -> None:
    for name in (".streamlit/config.toml", "docs/模型 说明（旧）.md"):
        path = shop.there / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x\n")
    their_app.commit(shop.there, "more")
    release = shop.make()
    assert {"source/.streamlit/config.toml", "source/docs/模型 说明（旧）.md"} <= {
        file.path for file, _ in release.contents
    }
    assert verify.bundle(release.bundle, shop.signers).id == release.id


# What is said of it.


def test_the_cards_say_what_is_not_known(shop: Shop) -> None:
    release = shop.make()
    for name in (card.HTML, card.MARKDOWN):
        page = (release.directory / name).read_text()
        for text in card.unknown_of_own(shop.app().check):
            assert text.split(":")[0] in page
        assert "0.634" in page
        assert "ml-signals" in page
        assert "⚠" in page
    assert "<script" not in (release.directory / card.HTML).read_text()


def test_what_a_team_writes_is_no_markup_of_the_card(shop: Shop) -> None:
    details = {
        **shop.make().manifest.details,
        "code": {"commit": None, "dirty": True, "changed": ["<b>x</b>.py"]},
        "metrics": {"<i>auc": None},
    }
    moment = datetime(2026, 3, 1, tzinfo=UTC)
    pages = card.render(
        details, app="ml-signals", env="prod", serial=1, created=moment, expires=moment
    )
    assert b"<b>x" not in pages[card.HTML]
    assert b"<i>auc" not in pages[card.HTML]
    assert b"not measured" in pages[card.HTML]
    assert b"None: serve.requirements is left out." in pages[card.MARKDOWN]


def test_the_cards_name_each_locked_package(shop: Shop) -> None:
    details = shop.make().manifest.details
    moment = datetime(2026, 3, 1, tzinfo=UTC)
    pages = card.render(
        details,
        app="ml-signals",
        env="prod",
        serial=1,
        created=moment,
        expires=moment,
        packages={"numpy": "2.3.4", "flask": "3.1.0"},
    )
    assert b"<details><summary>2 locked packages</summary>" in pages[card.HTML]
    for page in pages.values():
        assert page.index(b"flask 3.1.0") < page.index(b"numpy 2.3.4")


def test_other_code_than_the_training_s_is_only_told(shop: Shop) -> None:
    directory = shop.train()
    result = json.loads((directory / "result.json").read_bytes())
    code = {"commit": "a" * 40, "dirty": False}
    (directory / "result.json").write_text(json.dumps({**result, "code": code}))
    request = shop.request()
    assert f"was trained with {'a' * 12}" in own.differs(request)
    assert request.source.commit[:12] in own.differs(request)
    assert shop.make(request).manifest.details["trained_with"] == code
    (directory / "result.json").write_text(
        json.dumps({**result, "code": {"commit": request.source.commit, "dirty": False}})
    )
    assert own.differs(shop.request()) == ""


# What stops it.


def test_a_missed_criterion_blocks_unless_it_is_accepted(shop: Shop) -> None:
    shop.train(val_auc=0.51)
    request = shop.request()
    with pytest.raises(RefusedError) as caught:
        shop.make(request)
    assert "missed by 0.04" in caught.value.why
    assert shop.store.ids() == []
    release = shop.make(replace(request, accepted="a drill"))
    assert parse(release.raw).details["accepted"] == "a drill"
    assert "a drill" in (release.directory / card.HTML).read_text()


def test_today_s_bounds_count(shop: Shop) -> None:
    train = their_app.app_section(their_app.Ports(1, 2))["train"]
    app = shop.app(train={**train, "criteria": {"gap": {"max": 0.01}}})
    with pytest.raises(RefusedError, match="does not meet 1 blocking"):
        shop.make(shop.request(app))


def test_a_metric_that_was_not_measured_meets_nothing() -> None:
    section = their_app.app_section(their_app.Ports(1, 2))
    app = OwnApp.model_validate(section)
    assert app.train is not None
    for metrics in ({}, {"lstm_val_auc": None, "gap": 0.01}):
        finding = judge_own(metrics, app.train.criteria)[0]
        assert (finding.ok, finding.value) == (False, None)


def test_a_run_that_changed_since_is_refused(shop: Shop) -> None:
    directory = shop.train()
    (directory / "artefacts/data/ml_models/lgb_1h.txt").write_text("other")
    with pytest.raises(RefusedError, match="not as it left them"):
        shop.request()


def test_runs_of_other_applications_are_not_taken(shop: Shop) -> None:
    directory = shop.train()
    settings = {"own": True, "name": "somebody-elses", "symbol": "ETHUSDT", "tf": "1h"}
    (directory / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(UsageError, match="no finished training"):
        runs.newest(shop.top / "runs", app="ml-signals")
    for asked in ("ml-signals", ""):
        with pytest.raises(UsageError, match="trained another application"):
            runs.read(directory, app=asked)


def test_a_file_that_vanishes_is_one_clear_error(shop: Shop) -> None:
    request = shop.request()
    (shop.there / "web.py").unlink()
    with pytest.raises(MacdError, match=r"web\.py of the source could not be read") as caught:
        shop.make(request)
    assert caught.value.live == "no release was made"
    assert [path.name for path in shop.store.root.iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"check": "python3 no_such.py"}, "app.check runs no_such.py"),
        ({"serve__command": "python3 -u lost/live.py"}, "serve.command runs lost/live.py"),
        ({"serve__command": "/bin/sh run.sh"}, "serve.command runs run.sh"),
        ({"serve__command": "./deploy.sh"}, "starts with a file of the source"),
        ({"serve__more": {"web": {"command": "python3 w.py"}}}, "serve.more.web.command runs w.py"),
    ],
)
def test_a_command_whose_file_is_not_released(
    shop: Shop, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        shop.make(shop.request(shop.app(**change)))
    assert shop.store.ids() == []


@pytest.mark.parametrize(
    "command", ["python3 -m web", "/usr/bin/env", "gunicorn web:app", "python3 -u web.py"]
)
def test_commands_that_name_no_missing_file(shop: Shop, command: str) -> None:
    own.refuse_wrong_commands(shop.request(shop.app(serve__command=command)))


def test_an_untracked_script_is_named_as_such(shop: Shop) -> None:
    (shop.there / "new_live.py").write_text("x\n")
    with pytest.raises(UsageError, match="git add") as caught:
        shop.make(shop.request(shop.app(serve__command="python3 new_live.py")))
    assert "git doesn't track it" in caught.value.why


def test_an_artefact_below_what_the_host_keeps_is_left_out(shop: Shop) -> None:
    app = shop.app(serve__writes=["logs", "data/gpu_results"])
    request = shop.request(app)
    assert "data/gpu_results/train_lstm.log" in dict(request.left_out)
    paths = {file.path for file, _ in shop.make(request).contents}
    assert not [path for path in paths if "gpu_results" in path]


def test_two_that_want_one_place(shop: Shop) -> None:
    for name, app in (
        ("data/ml_models", shop.app()),
        ("kept", shop.app(serve__writes=["kept/x"])),
    ):
        path = shop.there / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("a file")
        their_app.git(shop.there, "add", "-f", name)
        with pytest.raises(UsageError, match="the place of another file"):
            shop.make(shop.request(app))
        their_app.git(shop.there, "rm", "-q", "-f", name)


def test_a_path_to_write_that_no_host_takes(shop: Shop) -> None:
    with pytest.raises(UsageError, match=r"serve\.writes can't travel"):
        shop.make(shop.request(shop.app(serve__writes=["my logs "])))


# Its own check, really run in a virtual environment of its lock.


def test_its_check_runs_in_the_built_tree(shop: Shop) -> None:
    check = shop.own_check(shop.app().check)
    release = shop.make(check=check.run)
    assert shop.items[0].done
    assert "exited with 0" in shop.items[0].detail
    assert verify.directory(release.directory, shop.signers).ok
    assert not (release.directory / "runtime").is_symlink()
    assert not list(release.directory.rglob("__pycache__"))
    assert not (release.directory / "source/logs").exists()


def test_a_failing_check_refuses_with_its_last_lines(shop: Shop) -> None:
    (shop.there / "FAULT").write_text("unhealthy")
    their_app.commit(shop.there, "broken")
    check = shop.own_check(shop.app().check)
    with pytest.raises(MacdError, match="health check") as caught:
        shop.make(check=check.run)
    assert "exit code 1" in caught.value.why
    assert "OK  lstm" in caught.value.why
    assert str(caught.value).count("mend what it names") == 1
    assert shop.store.ids() == []


def _script(shop: Shop, code: str) -> str:
    (shop.there / "own_check.py").write_text(code)
    their_app.commit(shop.there, "a check")
    return "python3 own_check.py"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            "import time; print('waiting', flush=True); time.sleep(60)",
            "not done in 2 s\n  waiting",
        ),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "killed by signal 11"),
        ("print('\\x1b[31mred\\x1b[0m'); raise SystemExit(3)", "exit code 3\n  red"),
        ("import numpy", "No module named 'numpy'"),
        ("open('data/stats.json', 'w').write('{}')", "it wrote data/stats.json"),
        ("open('web.py', 'a').write('#')", "it wrote web.py"),
    ],
)
def test_how_a_check_fails_is_told(shop: Shop, code: str, said: str) -> None:
    check = shop.own_check(_script(shop, code), limit_s=2 if "sleep" in code else 60)
    with pytest.raises(MacdError) as caught:
        shop.make(check=check.run)
    assert said in caught.value.why
    assert "\x1b" not in caught.value.why
    assert shop.store.ids() == []


def test_a_check_may_write_where_the_service_may(shop: Shop) -> None:
    code = "import os\nopen('logs/x', 'w').write('1')\nopen('data/live/y', 'w').write('1')\n"
    code += "assert not {name for name in os.environ if name.startswith(('MACD', 'PYTEST'))}\n"
    release = shop.make(check=shop.own_check(_script(shop, code)).run)
    assert not [file.path for file, _ in release.contents if file.path.startswith("source/logs")]
    assert not (release.directory / "source/data/live").exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_check_ends_with_whoever_runs_it(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/check.sh").write_text("sleep 300 &\necho $$ $! > pids\nwait\n")
    code = (
        "import sys; from pathlib import Path; from macd.release.lock import Lock\n"
        "from macd.release.own_check import OwnCheck\n"
        "here = Path(sys.argv[1])\n"
        "OwnCheck('/bin/sh check.sh', (), {}, Lock('', '', ()), (), here, say=print)._run(here)\n"
    )
    run = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as caller:
        written = tmp_path / "source/pids"
        assert _until(lambda: written.is_file() and len(written.read_text().split()) == 2)
        caller.send_signal(number)
        said, _ = caller.communicate(timeout=60)
    pids = [int(pid) for pid in written.read_text().split()]
    assert _until(lambda: not any(map(_runs, pids)))
    if number == signal.SIGINT:  # it could write out what it said
        assert said == b"app.check runs, 180 s at most: /bin/sh check.sh\n"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's PDEATHSIG")
def test_a_check_ends_where_its_keeper_is_killed(tmp_path: Path) -> None:
    """What the check itself started ends too: its caller is still there."""
    (tmp_path / "source").mkdir()
    script = "sleep 300 &\necho $$ $! $PPID > pids.new\nmv pids.new pids\nwait\n"
    (tmp_path / "source/check.sh").write_text(script)
    check = OwnCheck("/bin/sh check.sh", (), {}, Lock("", "", ()), (), tmp_path)
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(check._run, tmp_path)
        written = tmp_path / "source/pids"
        assert _until(written.is_file)
        *pids, keeper = map(int, written.read_text().split())
        os.kill(keeper, signal.SIGKILL)
        assert "killed by signal 9" in ended.result(60).detail
    assert _until(lambda: not any(map(_runs, pids)))


def test_a_check_ends_with_its_keeper(tmp_path: Path) -> None:
    words = [
        sys.executable,
        "-I",
        "-m",
        "macd.release.keeper",
        "/bin/sh",
        "-c",
        "echo $$; sleep 300; exit 0",
    ]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as keeper:
        assert keeper.stdout
        pid = int(keeper.stdout.readline())
        keeper.terminate()
        assert keeper.wait(60) != 0
    assert not _runs(pid)


def _until(true: Callable[[], bool], seconds: float = 60) -> bool:
    until = time.monotonic() + seconds
    while not true() and time.monotonic() < until:
        time.sleep(0.02)
    return true()


def _runs(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_where_its_packages_do_not_run_the_check_is_said_not_to_have_run(shop: Shop) -> None:
    check = shop.own_check("python3 no.py", lock=Lock("3.11", "linux-riscv64-glibc-2.36", ()))
    item = check.run(shop.top)
    assert (item.ok, item.done) == (True, False)
    assert "linux-riscv64" in item.detail


@pytest.mark.slow
def test_it_runs_with_the_packages_of_its_lock_and_no_others(shop: Shop) -> None:
    from macd.release.wheelhouse import _describe  # noqa: PLC0415
    from tests.support.small_releases import compiled_pip  # noqa: PLC0415

    ours = put(shop.top / "wheels", "ours", "7", modules={"ours.py": "X = 7\n"})
    wheels = [ours, compiled_pip()]
    lock = replace(EMPTY, wheels=tuple(map(_describe, wheels)))
    command = _script(shop, "import ours, sys\nassert ours.X == 7\nimport pydantic\n")
    check = shop.own_check(command, lock=lock, wheels=wheels)
    request = shop.request(lock=lock)
    with pytest.raises(MacdError, match="health check") as caught:
        own.make(request, shop.store, sign=lambda raw: raw, wheels=wheels, check=check.run)
    assert "No module named 'pydantic'" in caught.value.why
    missing = replace(check, programs={"gunicorn": "serve.command"}).run(shop.top)
    assert "serve.command starts gunicorn" in missing.detail
    (shop.top / "source").mkdir(exist_ok=True)
    (shop.top / "source/gunicorn").touch()
    beside = replace(check, programs={"gunicorn": "serve.command"}).run(shop.top)
    assert (beside.ok, beside.remedy) == (False, "write python3 gunicorn if it is Python")
