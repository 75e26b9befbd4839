"""Which files of an application of one's own are released, in real git repositories."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from macd.errors import MacdError, UsageError
from macd.inventory.own_app import OwnApp
from macd.release import source

_FILES = {
    "live_runner.py": "print('live')\n",
    "lib/features.py": "X = 1\n",
    ".streamlit/config.toml": "[server]\n",
    "data/模型 说明.md": "text\n",
    "logs/.gitkeep": "",
}


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    root = tmp_path / "their-repo"
    for name, text in _FILES.items():
        _put(root, name, text)
    _git(root, "init", "-q", "-b", "main")
    _commit(root)
    return root


def _put(root: Path, name: str, text: str = "x\n") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _git(root: Path, *words: str) -> None:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, *words], cwd=root, check=True, capture_output=True)


def _commit(root: Path) -> None:
    _git(root, "add", "-A", "-f")
    _git(root, "commit", "-q", "-m", "x")


def _app(root: Path, **fields: Any) -> OwnApp:
    serve = {"command": "python3 live_runner.py", "writes": ["logs"]}
    given = {"name": "theirs", "source": str(root), "serve": serve, **fields}
    return OwnApp.model_validate(given)


def test_what_git_tracks_is_released(repo: Path) -> None:
    _put(repo, ".gitignore", "data/klines\n")
    _commit(repo)
    _put(repo, "data/klines/BTC.csv")
    released = source.read(_app(repo))
    assert list(released.files) == [
        ".gitignore",
        ".streamlit/config.toml",
        "data/模型 说明.md",
        "lib/features.py",
        "live_runner.py",
    ]
    assert released.files["lib/features.py"].read_text() == "X = 1\n"
    assert len(released.commit) == 40
    assert not released.dirty
    assert released.changed == ()
    assert released.skipped == (("logs/.gitkeep", source._WHY_WRITES),)


def test_a_directory_of_a_larger_repository(repo: Path) -> None:
    _put(repo, "live_runner.py", "changed\n")
    released = source.read(_app(repo / "lib"))
    assert list(released.files) == ["features.py"]
    assert not released.dirty


def test_changes_make_it_dirty_and_are_named(repo: Path) -> None:
    _put(repo, "live_runner.py", "print('other')\n")
    (repo / "lib/features.py").unlink()
    _put(repo, "staged.py")
    _git(repo, "add", "staged.py")
    _put(repo, "forgotten.py")
    _put(repo, "logs/today.log")
    released = source.read(_app(repo))
    assert released.dirty
    assert released.changed == ("lib/features.py", "live_runner.py", "staged.py")
    assert "lib/features.py" not in released.files
    assert "staged.py" in released.files
    assert dict(released.skipped)["forgotten.py"] == source._WHY_OTHER
    assert dict(released.skipped)["lib/features.py"] == source._WHY_GONE
    assert "logs/today.log" not in dict(released.skipped)


def test_a_repository_without_a_commit_is_dirty(tmp_path: Path) -> None:
    _put(tmp_path, "a.py")
    _git(tmp_path, "init", "-q")
    _git(tmp_path, "add", "a.py")
    released = source.read(_app(tmp_path))
    assert (released.commit, released.dirty, released.changed) == ("", True, ("a.py",))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (".env", "TOKEN=1\n"),
        ("config/.env.production", "TOKEN=1\n"),
        ("deploy/id_ed25519", "x"),
        ("cert.pem", "-----BEGIN RSA PRIVATE KEY-----\nMII\n"),
        ("service-account-prod.json", "{}"),
        (".netrc", "machine x"),
        (".ssh/config", "Host x"),
    ],
)
def test_a_secret_that_git_tracks_is_never_released(repo: Path, name: str, text: str) -> None:
    _put(repo, name, text)
    _commit(repo)
    for app in (_app(repo), _app(repo, files=["**/*", name])):
        released = source.read(app)
        assert name not in released.files
        assert dict(released.skipped)[name] == source._WHY_ENV


def test_nobody_is_told_to_add_a_secret(repo: Path) -> None:
    _put(repo, ".env", "TOKEN=1\n")
    assert dict(source.read(_app(repo)).skipped)[".env"] == source._WHY_ENV


def test_what_only_looks_like_a_secret_travels(repo: Path) -> None:
    _put(repo, ".env.example", "TOKEN=\n")
    _put(repo, "ca.pem", "-----BEGIN CERTIFICATE-----\nMII\n")
    _commit(repo)
    assert {".env.example", "ca.pem"} <= source.read(_app(repo)).files.keys()


def test_links_are_left_out_and_named(repo: Path, tmp_path: Path) -> None:
    outside = _put(tmp_path, "outside/passwd", "root\n")
    (repo / "link.py").symlink_to(outside)
    (repo / "linked").symlink_to(outside.parent)
    _commit(repo)
    skipped = dict(source.read(_app(repo)).skipped)
    assert skipped["link.py"] == skipped["linked"] == source._WHY_LINK
    globbed = source.read(_app(repo, files=["**/*", "linked/*"]))
    assert not {"link.py", "linked", "linked/passwd"} & globbed.files.keys()


def test_submodules_go_along_and_one_that_is_not_checked_out_is_named(
    repo: Path, tmp_path: Path
) -> None:
    allow = ("-c", "protocol.file.allow=always")
    for name in ("deepest", "other"):
        module = tmp_path / name
        _put(module, "a.py")
        _git(module, "init", "-q")
        if name == "other":
            _git(module, *allow, "submodule", "add", "-q", str(tmp_path / "deepest"), "deep")
        _commit(module)
    _git(repo, *allow, "submodule", "add", "-q", str(tmp_path / "other"), "vendor")
    _git(repo, *allow, "submodule", "update", "--init", "--recursive", "-q")
    _commit(repo)
    app = _app(repo, serve={"command": "python3 live_runner.py", "writes": ["out"]})
    made = source.read(app)
    assert {"vendor/a.py", "vendor/deep/a.py", "live_runner.py"} <= made.files.keys()
    assert made.files["vendor/deep/a.py"].read_text() == "x\n"
    assert (made.dirty, made.skipped) == (False, ())
    _put(repo, "vendor/deep/a.py", "other\n")
    _put(repo, "vendor/new.py")
    made = source.read(app)
    assert "vendor/deep/a.py" in made.changed
    assert dict(made.skipped) == {"vendor/new.py": source._WHY_OTHER}
    _git(repo / "vendor", "checkout", "-q", "-f", "--detach")
    _put(repo, "vendor/a.py", "mine\n")
    _commit(repo / "vendor")  # another commit than the one that is pinned
    assert "vendor" in source.read(app).changed
    clone = tmp_path / "clone"
    _git(tmp_path, "clone", "-q", str(repo), str(clone))
    made = source.read(app.model_copy(update={"source": clone}))
    assert dict(made.skipped) == {"vendor": source._WHY_MODULE}


def test_an_empty_directory_is_nothing_to_add_and_nothing_at_all_is_refused(
    repo: Path, tmp_path: Path
) -> None:
    before = source.read(_app(repo)).skipped
    (repo / "models").mkdir()
    assert source.read(_app(repo)).skipped == before
    bare = tmp_path / "bare"
    bare.mkdir()
    _git(bare, "init", "-q")
    with pytest.raises(UsageError, match="is released"):
        source.read(_app(bare))
    _put(bare, ".env")
    _git(bare, "add", ".env")
    with pytest.raises(UsageError, match="secrets"):
        source.read(_app(bare))


def test_a_pointer_in_place_of_a_model_is_refused(repo: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
    _put(repo, "data/ml_models/lstm.onnx", pointer)
    _commit(repo)
    with pytest.raises(UsageError, match=r"lstm\.onnx.*\n.*\n.*git lfs pull"):
        source.read(_app(repo))


def test_globs_instead_of_git(repo: Path) -> None:
    _put(repo, "lib/new.py")
    _put(repo, "lib/__pycache__/new.pyc")
    _put(repo, ".venv/pyvenv.cfg")
    _put(repo, ".venv/lib/site.py")
    _put(repo, "live_runner.py", "changed\n")
    released = source.read(_app(repo, files=["lib", "data/*.md"]))
    assert list(released.files) == ["data/模型 说明.md", "lib/features.py", "lib/new.py"]
    assert released.changed == ("lib/new.py",)
    everything = source.read(_app(repo, files=["**/*"]))
    assert not [name for name in everything.files if name.startswith(".git/")]
    assert everything.changed == ("lib/new.py", "live_runner.py")


def test_globs_where_there_is_no_git(tmp_path: Path) -> None:
    _put(tmp_path, "app/run.py")
    released = source.read(_app(tmp_path / "app", files=["*.py"]))
    assert (list(released.files), released.commit, released.dirty) == (["run.py"], "", False)
    with pytest.raises(UsageError, match=r"git init.*app\.files"):
        source.read(_app(tmp_path / "app"))


def test_models_that_git_ignores(repo: Path) -> None:
    _put(repo, ".gitignore", "data/ml_models\n")
    _commit(repo)
    app = _app(repo, models=["data/ml_models/*.onnx"])
    with pytest.raises(UsageError, match=r"matches data/ml_models/\*\.onnx"):
        source.read(app)
    _put(repo, "data/ml_models/lstm.onnx")
    released = source.read(app)
    assert "data/ml_models/lstm.onnx" in released.files
    assert not released.dirty


def test_models_that_the_training_may_bring(repo: Path) -> None:
    train = {"stages": {"fit": "python3 fit.py"}, "artefacts": ["m/*"]}
    released = source.read(_app(repo, models=["m/*"], train=train))
    assert dict(released.skipped)["m/*"] == source._WHY_NONE


def test_models_that_git_neither_tracks_nor_ignores(repo: Path) -> None:
    _put(repo, "m/lstm.onnx")
    released = source.read(_app(repo, models=["m/*"]))
    assert "m/lstm.onnx" in released.files
    assert "m/" not in dict(released.skipped)


def test_names_that_cannot_travel_are_named_harmlessly(repo: Path) -> None:
    evil = "a\x1b[31mb\udce9\\.py"
    Path(os.fsdecode(os.fsencode(str(repo))), evil).write_text("x")
    _commit(repo)
    released = source.read(_app(repo))
    (name,) = [name for name, why in released.skipped if why == source._WHY_NAME]
    assert name.isprintable()
    assert all(name.isprintable() for name in released.files)


def test_names_that_differ_in_case_alone(repo: Path) -> None:
    _put(repo, "README.md")
    _put(repo, "readme.md")
    _commit(repo)
    with pytest.raises(UsageError, match=r"README\.md and readme\.md"):
        source.read(_app(repo))


def test_a_merge_conflict_is_refused(repo: Path) -> None:
    _git(repo, "checkout", "-q", "-b", "other")
    _put(repo, "lib/features.py", "X = 2\n")
    _commit(repo)
    _git(repo, "checkout", "-q", "main")
    _put(repo, "lib/features.py", "X = 3\n")
    _commit(repo)
    with pytest.raises(subprocess.CalledProcessError):
        _git(repo, "merge", "other")
    with pytest.raises(UsageError, match=r"features\.py.*merge conflict"):
        source.read(_app(repo))


def test_a_damaged_repository_is_one_clear_error(repo: Path) -> None:
    (repo / ".git/index").write_bytes(b"junk")
    with pytest.raises(MacdError, match="git can't say"):
        source.read(_app(repo))


def test_a_missing_source(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"app\.source"):
        source.read(_app(tmp_path / "none"))


def test_a_hook_s_variables_name_no_other_repository(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert "live_runner.py" in source.read(_app(repo)).files


@pytest.mark.parametrize(
    ("glob", "names"),
    [
        ("*", ["a.py", "deep/b.py", "deep/er/c.py", "odd[1].py", ".hid/d.py"]),
        ("*.py", ["a.py", "odd[1].py"]),
        ("**/*.py", ["a.py", "deep/b.py", "deep/er/c.py", "odd[1].py", ".hid/d.py"]),
        ("deep", ["deep/b.py", "deep/er/c.py"]),
        ("deep/*", ["deep/b.py", "deep/er/c.py"]),
        ("deep/*.py", ["deep/b.py"]),
        ("deep/**", ["deep/b.py", "deep/er/c.py"]),
        ("deep/**/c.py", ["deep/er/c.py"]),
        ("d??p/[a-b].py", ["deep/b.py"]),
        ("odd[1].py", ["odd[1].py"]),
        (".hid/*", [".hid/d.py"]),
        ("a.py", ["a.py"]),
        ("a.py/*", []),
        ("none/*.py", []),
        ("DEEP/*", []),
    ],
)
def test_what_globs_mean(tmp_path: Path, glob: str, names: list[str]) -> None:
    for name in ("a.py", "deep/b.py", "deep/er/c.py", "odd[1].py", ".hid/d.py"):
        _put(tmp_path, name)
    (tmp_path / "a_link").symlink_to(tmp_path / "deep")
    app = _app(tmp_path, files=[glob])
    if not names:
        with pytest.raises(UsageError, match="no file in"):
            source.read(app)
        return
    assert list(source.read(app).files) == sorted(names)
