"""What of a team's requirements.txt can be locked, and what is said of the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macd.errors import UsageError
from macd.release import requirements


def _file(root: Path, text: str, name: str = "requirements.txt") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing yet\n",
        "numpy",
        "numpy>=1.26,<3  # pinned by Jun",
        "scikit-learn ~= 1.4",
        "uvicorn[standard]>=0.29 ; python_version >= '3.9'",
        "python-dotenv (>=1.0)",
        "tqdm; sys_platform == 'linux'",
        "numpy==1.26.4 \\\n    --hash=sha256:" + "a" * 64 + " \\\n    --hash=sha256:" + "b" * 64,
        "--extra-index-url https://download.pytorch.org/whl/cpu\ntorch==2.6.0+cpu",
        "-i https://${TOKEN}@example.org/simple\n--pre\n--trusted-host example.org\nx",
        "foo @ https://example.org/foo-1.0-py3-none-any.whl#sha256=" + "a" * 64,
        "https://example.org/foo-1.0-py3-none-any.whl",
        "--only-binary :all:\nnumpy",
        "--require-hashes\n",
    ],
)
def test_what_pip_finds_as_wheels_is_taken(tmp_path: Path, text: str) -> None:
    _file(tmp_path, text)
    read = requirements.read(tmp_path, "requirements.txt")
    assert list(read.contents) == ["requirements.txt"]
    assert read.warnings == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("-e .", "editable"),
        ("--editable=git+https://example.org/x.git", "editable"),
        ("\n# x\n./lib", "line 3"),
        ("../common", "a file here"),
        ("/opt/wheels/x-1-py3-none-any.whl", "a file here"),
        ("wheels/x-1-py3-none-any.whl", "a file here"),
        ("x-1.0.tar.gz", "a file here"),
        ("git+https://example.org/x.git@main#egg=x", "a repository"),
        ("x @ git+ssh://git@example.org/x.git", "a repository"),
        ("x @ file:///opt/x", "no wheel of an index"),
        ("https://example.org/x-1.0.tar.gz", "no wheel of an index"),
        ("--no-binary :all:", "more than wheels"),
        ("--only-binary :none:", "more than wheels"),
        ("numpy 1.26", "no package and version"),
        ("conda install numpy", "no package and version"),
        ("-r none.txt", "none.txt: No such file"),
        ("-r ../../other.txt", "outside of the source"),
        ("-r https://example.org/r.txt", "not in the source"),
        ("--find-links ../wheels", "outside of the source"),
        ("--find-links wheels", "no directory"),
    ],
)
def test_what_no_host_can_install_is_refused(tmp_path: Path, text: str, said: str) -> None:
    _file(tmp_path / "source", text)
    with pytest.raises(UsageError) as caught:
        requirements.read(tmp_path / "source", "requirements.txt")
    error = str(caught.value)
    assert said in error
    assert "requirements.txt" in error
    assert caught.value.hint


def test_files_it_names_belong_to_it(tmp_path: Path) -> None:
    _file(tmp_path, "-r base.txt\n-cpins.txt\nflask\n", "deploy/prod.txt")
    _file(tmp_path, "--requirement=../common.txt\n-r prod.txt\nnumpy\n", "deploy/base.txt")
    _file(tmp_path, "numpy==1.26\n", "deploy/pins.txt")
    common = _file(tmp_path, "pandas\n", "common.txt")
    read = requirements.read(tmp_path, "deploy/prod.txt")
    assert len(read.contents) == 4
    before = read.sha256
    common.write_text("pandas<3\n")
    assert requirements.read(tmp_path, "deploy/prod.txt").sha256 != before


def test_wheels_beside_it_belong_to_it(tmp_path: Path) -> None:
    _file(tmp_path, "--find-links wheels\nours\n")
    _file(tmp_path, "1", "wheels/ours-1-py3-none-any.whl")
    before = requirements.read(tmp_path, "requirements.txt")
    assert before.settings == {"PIP_FIND_LINKS": str(tmp_path / "wheels")}
    _file(tmp_path, "2", "wheels/ours-1-py3-none-any.whl")
    assert requirements.read(tmp_path, "requirements.txt").sha256 != before.sha256


def test_a_password_is_told_of_and_never_shown(tmp_path: Path) -> None:
    _file(tmp_path, "--index-url https://jun:hunter2@pypi.example.org/simple\n")
    read = requirements.read(tmp_path, "requirements.txt")
    assert "password" in read.warnings[0]
    assert "hunter2" not in repr(read.warnings) + repr({**vars(read), "contents": 0, "sources": 0})
    _file(tmp_path, "git+https://jun:hunter2@example.org/x.git\n")
    with pytest.raises(UsageError) as caught:
        requirements.read(tmp_path, "requirements.txt")
    assert "hunter2" not in str(caught.value)


def test_variables_are_filled_in_for_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "hunter2")
    _file(tmp_path, "-i https://${TOKEN}@a.example/s\n--extra-index-url https://b.example/s\n")
    read = requirements.read(tmp_path, "requirements.txt")
    assert read.settings == {
        "PIP_INDEX_URL": "https://hunter2@a.example/s",
        "PIP_EXTRA_INDEX_URL": "https://b.example/s",
    }
    assert "hunter2" not in repr(read)


def test_as_powershell_writes_it(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("numpy>=1.26\r\n-e .\r\n", encoding="utf-16")
    with pytest.raises(UsageError, match="line 2"):
        requirements.read(tmp_path, "requirements.txt")


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused_in_words(text: str) -> None:
    import tempfile  # noqa: PLC0415 - hypothesis and tmp_path don't go together

    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "r.txt").write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            requirements.read(Path(directory), "r.txt")
        except UsageError as error:
            assert str(error).replace("\n", "").isprintable()
