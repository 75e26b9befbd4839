"""What a first inventory says, from a survey: every guess loads, and says how it is known."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from macd.host import survey
from macd.init import guess, text
from macd.init.items import Answers, Place, Seen
from macd.inventory import Inventory, parsed
from tests.support import their_app

ANSWERS = Answers("ours", app="ml-signals", source="../their", prod=Place("prod", "root", 22222))
HOST_UNIT: dict[str, Any] = {
    "unit": "macd-analysis.service",
    "scope": "system",
    "path": "/etc/systemd/system/macd-analysis.service",
    "command": "/opt/x/venv/bin/python3 live_runner.py --phase paper",
    "user": "trader",
    "directory": "/opt/x",
    "type": "",
    "env_files": [],
    "variables": [],
    "dropins": [],
    "dropin_variables": [],
    "active": "active",
    "pid": 7,
    "ports": [8080],
    "health": "http://127.0.0.1:8080/health",
}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    there = their_app.repository(tmp_path_factory.mktemp("theirs") / "their", models=True)
    tracked = frozenset(their_app.git(there, "ls-files").split())
    return Seen(survey.directory(str(there)), tracked)


def host(*units: dict[str, Any], uid: int = 0) -> dict[str, Any]:
    return {"units": [{**HOST_UNIT, **unit} for unit in units], "directory": {}, "uid": uid}


def made(seen: Seen, answers: Answers = ANSWERS) -> Inventory:
    written = text.inventory(guess.items(answers, seen), name="ours")
    return parsed(written, name="ours", root=Path("/nowhere"))


def app_of(seen: Seen, answers: Answers = ANSWERS) -> Any:
    app = made(seen, answers).app
    assert app is not None
    return app


def test_a_repository_and_its_host_give_an_inventory(seen: Seen) -> None:
    inventory = made(replace(seen, host=host({})))
    app = inventory.app
    assert app is not None
    assert app.files == ()  # what git tracks
    assert app.models == ("data/ml_models/*",)
    assert app.check == "python3 check_ml_health.py --skip-live-check"
    assert app.serve.command == "python3 live_runner.py --phase paper"
    assert app.serve.requirements == "requirements.txt"
    assert app.serve.ready.http == "http://127.0.0.1:8080/health"
    assert inventory.service.user == "trader"
    assert inventory.host("prod").app_dir == "/opt/x"
    assert inventory.train.symbol == "ETHUSDT"
    assert app.train is None  # no host that trains


def test_a_training_host_is_called_by_its_alias(seen: Seen) -> None:
    for alias, name in (("h800", "h800"), ("192.0.2.7", "train"), ("prod", "train")):
        answers = replace(ANSWERS, train=Place(alias))
        assert guess.train_host(answers) == name
        assert made(seen, answers).host(name).role == "train"
    written = text.inventory(guess.items(answers, seen), name="ours")
    gpu = "#   require_gpu: false"
    assert gpu in written
    changed = parsed(written.replace(gpu, gpu[2:]), name="ours", root=Path("/nowhere"))
    assert not changed.train.require_gpu
    assert "require_gpu" not in text.inventory(guess.items(ANSWERS, seen), name="ours")


def test_nothing_of_a_host_that_was_not_seen_is_found(seen: Seen) -> None:
    there = {item.key: item for item in guess.items(ANSWERS, seen)}
    about_host = [item for key, item in there.items() if key[:2] == ("hosts", "prod")]
    assert {item.origin for item in about_host} <= {"", "given", "guessed", "decide"}
    assert there["app", "serve", "command"].origin != "found"
    assert there["hosts", "prod", "ssh"].origin == "given"


def test_a_training_host_brings_stages_data_and_metrics(seen: Seen) -> None:
    answers = replace(ANSWERS, train=Place("h800"), jump=Place("jumphost"))
    inventory = made(seen, answers)
    assert inventory.host("h800").jump == ("jump",)
    app = inventory.app
    assert app is not None
    assert app.train is not None
    assert list(app.train.stages) == ["verify", "lstm", "lgb"]
    assert app.train.stages["verify"] == "python3 verify_data.py"
    assert app.train.setup == "requirements-gpu.txt"
    assert app.train.data == ("data/klines",)
    assert "data/ml_models/*" in app.train.artefacts
    assert app.train.metrics["lstm_1h_val_auc"] == "data/ml_models/lstm_1h_meta.json#/val_auc"
    assert app.models == ()  # a training brings them


@pytest.mark.parametrize(
    ("command", "runs"),
    [
        ("/opt/x/venv/bin/python3.11 /opt/x/live_runner.py -v", "python3 live_runner.py -v"),
        ("/opt/x/venv/bin/gunicorn web:app", "gunicorn web:app"),
        ("/usr/bin/env python3 live_runner.py", "/usr/bin/env python3 live_runner.py"),
        ('/bin/bash -c "cd /opt/x && exec python3 live_runner.py"', "python3 live_runner.py"),
        ("/opt/x/venv/bin/python3 live_runner.py $ARGS", ""),
        ('python3 "live_runner.py', ""),
    ],
)
def test_a_units_command_becomes_the_releases(command: str, runs: str) -> None:
    assert guess.own_command({**HOST_UNIT, "command": command}) == runs


def test_the_engine_is_not_the_page_and_the_page_goes_live_with_it(seen: Seen) -> None:
    web = {"unit": "macd-analysis-web.service", "command": "venv/bin/python3 web.py", "health": ""}
    surveyed = replace(seen, host=host(web, {}))
    app = app_of(surveyed)
    assert app.serve.command.startswith("python3 live_runner.py")
    assert list(app.serve.more) == ["web"]
    other = {**web, "unit": "boss-page.service"}
    assert "macd's is macd-analysis-boss-page" in text.inventory(
        guess.items(ANSWERS, replace(seen, host=host(other, {}))), name="ours"
    )
    chosen = replace(ANSWERS, unit="macd-analysis-web")
    assert app_of(surveyed, chosen).serve.command == "python3 web.py"


def test_units_of_others_are_left_alone(seen: Seen) -> None:
    nginx = {"unit": "nginx.service", "command": "/usr/sbin/nginx", "directory": ""}
    inventory = made(replace(seen, host=host(nginx)))
    assert inventory.host("prod").unit == "ml-signals"
    assert "DECIDE" in text.inventory(
        guess.items(ANSWERS, replace(seen, host=host(nginx))), name="x"
    )


def test_who_logs_in_without_root_needs_sudo(seen: Seen) -> None:
    assert made(replace(seen, host=host({}, uid=1000))).host("prod").become == "sudo"
    assert made(replace(seen, host=host({}, uid=0))).host("prod").become == ""
    root = made(replace(seen, host=host({"user": ""})))
    assert root.service.user == "macd"


def test_a_flag_in_a_dropin_stays_there(seen: Seen) -> None:
    flag = app_of(replace(seen, host=host({"dropin_variables": ["ML_ENABLE_STACKING"]}))).flag
    assert (flag.name, flag.where) == ("ML_ENABLE_STACKING", "dropin")
    flag = app_of(seen).flag
    assert (flag.name, flag.where) == ("ML_ENABLE_STACKING", "env")  # their script reads it
    bare = Seen({}, host=host({"variables": ["ENABLE_MODELS_LIVE"], "command": "x live.py"}))
    flag = app_of(bare, replace(ANSWERS, app_dir="/opt/x")).flag
    assert (flag.name, flag.where) == ("ENABLE_MODELS_LIVE", "env")


def test_signals_are_read_where_probabilities_are(seen: Seen) -> None:
    fields = {"ts": "number", "sym": "str", "p_up": "probability", "model_b": "probability"}
    logs = {"out/sig_*.jsonl": {"INFO": {"text": "str"}, "SIGNAL": fields}}
    logs |= {f"{macds}/journal.jsonl": {} for macds in ("state", "state.undone-1")}
    surveyed = replace(seen, host={**host({}), "directory": {"logs": logs}})
    app = app_of(surveyed)
    assert app.signals.files == "out/sig_*.jsonl"
    assert app.signals.map == {"time": "ts", "coverage": "p_up"}
    assert app.signals.rates["model_b_normal"].of == "coverage"
    assert "out" in app.serve.writes
    assert not [place for place in app.serve.writes if "state" in place]  # macd's own


@pytest.mark.parametrize("source", [{}, {"scripts": {}}, {"requirements": ["a-requires.txt"]}])
def test_an_almost_empty_directory_gives_an_inventory_that_loads(source: dict[str, Any]) -> None:
    inventory = made(Seen(source))
    app = inventory.app
    assert app is not None
    assert app.signals is None
    assert app.flag is None


def test_names_that_an_inventory_refuses_are_left_out(tmp_path: Path) -> None:
    for name in ("train_x;rm.py", "train_.py", "-train.py", "live runner.py", "train_ß.py"):
        (tmp_path / name).write_text("import sys\nprint(sys.argv)\n")
    (tmp_path / "models ; x").mkdir()
    (tmp_path / "models ; x/m.onnx").write_bytes(b"x")
    answers = replace(ANSWERS, train=Place("h800"))
    assert made(Seen(survey.directory(str(tmp_path))), answers).app is not None


def test_the_built_in_application_needs_hosts_and_keys_alone() -> None:
    inventory = made(Seen({}), Answers("ours", prod=Place("prod"), train=Place("h800")))
    assert inventory.app is None
    assert inventory.release.sign_key is not None
    assert {host.role for host in inventory.hosts.values()} == {"train", "serve"}


def test_a_python_that_is_new_enough_is_named() -> None:
    seen = Seen({}, host={"units": [], "directory": {}, "uid": 0}, python="python3.12")
    assert made(seen, Answers("ours", prod=Place("prod"))).host("prod").python == "python3.12"


def test_of_a_units_environment_only_names_are_kept() -> None:
    unit = (
        '[Service]\nExecStart=-/bin/x \\\n  -v\nEnvironment="A=s3cret" B=t0ken\nUser=u\n#User=v\n'
    )
    part = survey.service_part(unit)
    assert part["variables"] == ["A", "B"]
    assert part["user"] == "u"
    assert part["command"].split() == ["/bin/x", "-v"]
    assert "s3cret" not in str(part)
    assert "t0ken" not in str(part)


@pytest.mark.parametrize(("health", "origin"), [("/health", "found"), ("/", "guessed")])
def test_an_address_that_says_little_of_health_is_a_guess(
    seen: Seen, health: str, origin: str
) -> None:
    looked = replace(seen, host=host({"health": f"http://127.0.0.1:8080{health}"}))
    ready = next(item for item in guess.items(ANSWERS, looked) if item.key[-1] == "ready")
    assert (ready.value["http"], ready.origin) == (f"http://127.0.0.1:8080{health}", origin)


@pytest.mark.parametrize(
    ("good", "path"), [(lambda path: path == "/status", "/status"), (lambda path: True, "/")]
)
def test_who_answers_whatever_is_asked_has_no_address_of_health(
    good: Callable[[str], bool], path: str
) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if good(self.path) else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            port = server.server_port
            assert survey._answering(port) == f"http://127.0.0.1:{port}{path}"
        finally:
            server.shutdown()


@pytest.mark.parametrize(
    ("names", "value", "says"),
    [
        (["requirements/base.txt", "requirements/prod.txt"], "requirements/prod.txt", "which of"),
        (["poetry.lock", "pyproject.toml"], None, "poetry export -o requirements.txt"),
        (["environment.yml"], None, "write it from what environment.yml names"),
        ([], None, ""),
    ],
)
def test_packages_of_a_service_are_named_wherever_they_are_written(
    names: list[str], value: str | None, says: str, tmp_path: Path
) -> None:
    for name in (*names, "live.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    seen = Seen(survey.directory(str(tmp_path)), frozenset())
    assert app_of(seen).serve.requirements == value
    lines = text.inventory(guess.items(ANSWERS, seen), name="ours").splitlines()
    wanted = [line for line in lines if "requirements: " in line]
    assert [says in line for line in wanted] == ([True] if says else [])
