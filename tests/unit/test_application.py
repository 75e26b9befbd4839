"""What the tool says of the application is what the application does."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import grimp
import pytest

import macd
from macd import application
from macd.app.predict.__main__ import COMMANDS
from macd.app.service.predictor import no_models
from macd.application import BUILTIN
from macd.childprocess import EndedError
from macd.errors import ExitCode, MacdError
from macd.host.judge import parse
from macd.jobs.request import sources

TOP = Path(macd.__file__).parent


def test_its_modules_and_sources_are_there() -> None:
    for module in (BUILTIN.train, BUILTIN.check, BUILTIN.onnx, BUILTIN.runs, BUILTIN.serve):
        path = TOP.parent / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
    assert all((TOP / name).exists() for name in BUILTIN.sources)
    assert set(COMMANDS) == {"check", "check-run", "prove", "folder"}


def test_what_a_training_imports_travels_with_it() -> None:
    graph = grimp.build_graph("macd", exclude_type_checking_imports=True, cache_dir=None)
    paths = [path for path in sources(BUILTIN.sources) if path.endswith(".py")]
    sent = {path[:-3].replace("/", ".").removesuffix(".__init__") for path in paths}
    imported = {name for module in sent for name in graph.find_modules_directly_imported_by(module)}
    assert sent > {"macd.app.train.pipeline", "macd.errors"}
    assert imported <= sent, imported - sent


def test_the_service_writes_every_field_that_is_judged() -> None:
    by_the_loop = {"close", "ml_challenger"}
    written = no_models("all", "broken").fields.keys() | by_the_loop
    assert written >= parse.FIELDS


def test_an_error_of_the_application_keeps_its_words_and_exit_code(tmp_path: Path) -> None:
    with pytest.raises(MacdError, match="that can't be read") as caught:
        application.check_run(tmp_path, tmp_path)
    assert caught.value.exit_code == ExitCode.FAILED
    assert "invoke train.fetch" in caught.value.hint


def test_a_check_that_dies_is_an_error_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die() -> None:
        raise EndedError("it ended the process that read it (SIGKILL)")

    monkeypatch.setattr(application.childprocess, "asked", lambda *_: nullcontext(die))
    with pytest.raises(MacdError, match="can't be checked") as caught:
        application.check_folder(tmp_path)
    assert "SIGKILL" in caught.value.why
    assert caught.value.hint
