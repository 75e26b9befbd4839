"""What `invoke host.list` says of an `app:` that names what is not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from invoke import Exit

from macd.cli import host
from macd.errors import ExitCode
from macd.inventory import load
from macd.release import described
from tests.support import their_app


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return their_app.repository(tmp_path_factory.mktemp("theirs") / "their", bars=50, models=True)


def written(root: Path, there: Path, **change: Any) -> Path:
    (root / "inventory").mkdir()
    (root / "tasks.py").touch()
    prod = {"role": "serve", "env": "prod", "ssh": "localhost", "app_dir": "/opt/x"}
    section = their_app.app_section(their_app.Ports(8080, 8081), source=str(there), **change)
    path = root / "inventory/ours.yml"
    document = {"hosts": {"prod": prod}, "app": section}
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def test_a_sound_application_has_no_problem(tmp_path: Path, there: Path) -> None:
    written(tmp_path, there, serve__requirements="requirements.txt", models=["data/ml_models/*"])
    assert described.problems(load("ours", root=tmp_path)) == []


@pytest.mark.parametrize(
    ("change", "key", "said"),
    [
        ({"source": "/nowhere"}, "source", "no directory /nowhere"),
        ({"files": ["*.py", "lib/*.py"]}, "files.1", "lib/*.py, and no file matches"),
        ({"models": ["ml/*"], "train": None}, "models.0", "ml/*, and no file matches"),
        ({"train__data": ["data/klins"]}, "train.data.0", "data/klins, and no file matches"),
        ({"train__setup": "gpu.txt"}, "train.setup", "no file gpu.txt"),
        ({"serve__requirements": "req.txt"}, "serve.requirements", "req.txt: No such file"),
        ({"serve__command": "python3 liv.py"}, "serve.command", "liv.py: no such file is released"),
        ({"check": "python3 chk.py"}, "check", "chk.py: no such file is released"),
        ({"train__stages": {"one": "python3 a.py"}}, "train.stages.one", "a.py: no such file"),
        (
            {"serve__more": {"web": {"command": "python3 webb.py"}}},
            "serve.more.web.command",
            "webb.py: no such file",
        ),
    ],
)
def test_what_is_not_there_is_told_with_its_line(
    tmp_path: Path, there: Path, change: dict[str, Any], key: str, said: str
) -> None:
    path = written(tmp_path, there, **{k: v for k, v in change.items() if k != "source"})
    if source := change.get("source"):
        path.write_text(path.read_text().replace(str(there), source))
    (problem,) = described.problems(load("ours", root=tmp_path))
    assert ".".join(map(str, problem.key)) == f"app.{key}"
    assert said in problem.found
    line = path.read_text().splitlines()[(problem.line or 0) - 1]
    last = str(problem.key[-1])
    assert line.strip().startswith("- " if last.isdigit() else f"{last}:")


def test_models_may_be_missing_where_a_training_brings_them(tmp_path: Path, there: Path) -> None:
    written(tmp_path, there, models=["ml/*"])
    assert described.problems(load("ours", root=tmp_path)) == []


def test_what_nothing_says_is_released_is_told(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    written(tmp_path, tmp_path / "bare", train=None)
    (problem,) = described.problems(load("ours", root=tmp_path))
    assert problem.key == ("app", "source")
    assert "nothing says which files" in problem.found


def test_the_list_shows_hosts_and_mistakes_and_ends_with_2(
    tmp_path: Path, there: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path, there, models=["ml/*"], train=None)
    monkeypatch.setenv("MACD_ROOT", str(tmp_path))
    (tmp_path / "inventory/known_hosts.ours").touch()
    with pytest.raises(Exit) as ended:
        host.list_.body(None, inventory="ours")
    assert ended.value.code == ExitCode.USAGE
    out = capsys.readouterr().out
    assert out.index("prod ") < out.index("⚠ line ")
    assert "app.models.0" in out
    with pytest.raises(Exit):
        host.list_.body(None, inventory="ours", json=True)
    assert json.loads(capsys.readouterr().out)["app"][0]["key"] == ["app", "models", 0]
