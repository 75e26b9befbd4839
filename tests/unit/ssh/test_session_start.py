"""An agent starts under every login shell, through noise, or the operator is told why not."""

from __future__ import annotations

import ast
import hashlib
import importlib
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from macd.errors import MacdError, UsageError
from macd.host.rpc import agent, frames
from macd.ssh import archive
from macd.ssh.session import Session

StartAgent = Callable[..., Session]

SHELLS = {
    "bash": ("bash", "--norc", "-c"),
    "dash": ("dash", "-c"),
    "zsh": ("zsh", "-f", "-c"),
    "fish": ("fish", "--no-config", "-c"),
    "tcsh": ("tcsh", "-f", "-c"),
    "csh": ("csh", "-f", "-c"),
    "busybox": ("busybox", "sh", "-c"),
    "ksh": ("ksh", "-c"),
}


def script(path: Path, body: str) -> str:
    path.write_text(body)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize("name", SHELLS)
def test_every_login_shell_starts_it(start_agent: StartAgent, tmp_path: Path, name: str) -> None:
    if shutil.which(SHELLS[name][0]) is None:
        pytest.skip(f"{name} is not installed")
    python = tmp_path / "a dir with 'quotes' & $(touch owned) `x` *" / "python"
    python.parent.mkdir()
    script(python, f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    session = start_agent(str(python), shell=SHELLS[name], cwd=tmp_path)
    assert session.call("ping")["pid"] > 0
    assert not (tmp_path / "owned").exists()


def test_the_command_is_readable_by_every_shell() -> None:
    command = archive.command("python3")
    assert command.count("'") == 2
    assert not set("!\\\n") & set(command)
    assert len(command) < 1000  # csh refuses longer words


@pytest.mark.parametrize("python", ["", " ", "py\nthon", "a\\b", "wow!", "\x1b[31m"])
def test_a_python_no_shell_can_be_given_is_refused(python: str) -> None:
    with pytest.raises(UsageError, match="`python`"):
        archive.command(python)


def test_home_in_the_path_of_python_is_the_hosts(start_agent: StartAgent, tmp_path: Path) -> None:
    script(tmp_path / "py thon", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    session = start_agent("~/py thon", env={**os.environ, "HOME": str(tmp_path)})
    assert session.call("ping")["pid"] > 0


def test_what_is_shipped_is_the_same_each_time() -> None:
    """Also where sets come in another order, as they do in each new process."""
    code = (
        "import hashlib; from macd.ssh import archive; "
        "print(hashlib.sha256(archive.opening(bytes(16))).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert digests == {hashlib.sha256(archive.opening(bytes(16))).hexdigest() + "\n"}


def test_every_operation_of_the_tables_is_a_function_of_the_host_half() -> None:
    for name, path in (agent.OPERATIONS | agent.STREAMS).items():
        module, _, function = path.rpartition(".")
        assert callable(getattr(importlib.import_module(f"macd.host.{module}"), function)), name


def test_an_agent_imports_only_what_is_asked_for() -> None:
    code = "import sys, macd.host.rpc.agent; print([m for m in sys.modules if 'macd.host.' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = ["macd.host.rpc", "macd.host.failure", "macd.host.rpc.frames", "macd.host.rpc.agent"]
    assert sorted(ast.literal_eval(done.stdout)) == sorted(modules)


def test_no_file_is_left_and_none_is_read_from_the_directory(
    start_agent: StartAgent, tmp_path: Path
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('a stray json.py was imported')")
    (tmp_path / "macd").mkdir()
    (tmp_path / "macd" / "__init__.py").write_text("raise SystemExit('a stray macd')")
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(tmp_path)}
    before = sorted(tmp_path.rglob("*"))
    session = start_agent(cwd=tmp_path, env=environment)
    assert session.facts().user.home == str(tmp_path)
    session.close()
    assert sorted(tmp_path.rglob("*")) == before


# -- noise ----------------------------------------------------------------------------------


def noisy(path: Path, prelude: str) -> tuple[str, ...]:
    """A login shell that prints before (and while) it runs the command."""
    return (script(path / "noisy", f'#!/bin/sh\n{prelude}\nexec /bin/sh -c "$1"\n'),)


def test_noise_before_the_agent_is_skipped(start_agent: StartAgent, tmp_path: Path) -> None:
    shell = noisy(tmp_path, "echo 'Welcome to h800!'; printf '\\377\\000\\033[2J'; echo more >&2")
    assert start_agent(shell=shell).call("ping")


def test_as_much_noise_as_allowed_is_skipped(start_agent: StartAgent, tmp_path: Path) -> None:
    shell = noisy(tmp_path, f"head -c {frames.MAX_NOISE} /dev/zero")
    assert start_agent(shell=shell).call("ping")


def test_too_much_noise_is_an_error_that_shows_its_beginning(
    start_agent: StartAgent, tmp_path: Path
) -> None:
    shell = noisy(tmp_path, "echo 'Message of the day'; head -c 200000 /dev/zero")
    with pytest.raises(MacdError, match="here: the agent did not start") as caught:
        start_agent(shell=shell).call("ping")
    assert "Message of the day" in caught.value.why
    assert "\0" not in caught.value.why


def test_a_shell_that_says_no_is_quoted(start_agent: StartAgent, tmp_path: Path) -> None:
    shell = (script(tmp_path / "nologin", "#!/bin/sh\necho Account not available\nexit 1\n"),)
    with pytest.raises(MacdError, match="did not start") as caught:
        start_agent(shell=shell).call("ping")
    assert "status 1" in caught.value.why
    assert "Account not available" in caught.value.why


def test_a_shell_that_never_gets_there_is_given_up(start_agent: StartAgent, tmp_path: Path) -> None:
    shell = (script(tmp_path / "menu", "#!/bin/sh\necho Press 1 for help\nexec sleep 1000\n"),)
    session = start_agent(shell=shell, start_seconds=0.5)
    with pytest.raises(MacdError, match="did not start") as caught:
        session.call("ping")
    assert "no message came" in caught.value.why
    assert "Press 1 for help" in caught.value.why


def test_a_shell_that_reads_our_input_is_an_error(start_agent: StartAgent, tmp_path: Path) -> None:
    with pytest.raises(MacdError, match="did not start") as caught:
        start_agent(shell=noisy(tmp_path, "head -c 100 > /dev/null")).call("ping")
    assert "stdin was read by something else" in caught.value.why


# -- sudo -----------------------------------------------------------------------------------

# What a real sudo 1.9.13 printed (tests/hosts/test_sudo_hosts.py asks a real one).
PASSWORD = "sudo: a password is required"
IN_GERMAN = "sudo: Ein Passwort ist notwendig"
NO_TTY = "sudo: sorry, you must have a tty to run sudo"
NOT_ALLOWED = "Sorry, user joe is not allowed to execute '/usr/bin/python3.11 $*' as root on here."


def with_sudo(start_agent: StartAgent, folder: Path, body: str, python: str) -> MacdError:
    script(folder / "sudo", f"#!/bin/sh\n{body}\n")
    path = f"{folder}:{os.environ['PATH']}"
    with pytest.raises(MacdError) as caught:
        start_agent(python, become="sudo", env={**os.environ, "PATH": path}).call("ping")
    return caught.value


@pytest.mark.parametrize(
    ("said", "python", "path"),
    [
        (PASSWORD, "python3", "/usr/bin/python3"),
        (PASSWORD, "/opt/py/bin/python3.12", "/opt/py/bin/python3.12"),
        (PASSWORD, "~/venv/bin/python", "/home/joe/venv/bin/python"),
        (IN_GERMAN, "python3", "/usr/bin/python3"),
        (NO_TTY, "python3", "/usr/bin/python3"),
        (NOT_ALLOWED, "python3", "/usr/bin/python3.11"),
    ],
)
def test_a_sudo_that_says_no_is_told_with_the_lines_it_wants(
    start_agent: StartAgent, tmp_path: Path, said: str, python: str, path: str
) -> None:
    body = f'shift 3\necho "sudo: unable to resolve host here" >&2\necho "{said}" >&2\nexit 1'
    error = with_sudo(start_agent, tmp_path, body, python)
    assert error.what == f"here: sudo -n may not start {python}"
    assert said.partition(" $*")[0].replace("'", "'")[:60] in error.why
    assert "import sys" not in error.why
    assert f"joe ALL=(root) NOPASSWD: {path}\nDefaults:joe !requiretty" in error.hint
    assert "shell" not in str(error)


def test_a_host_without_sudo_is_told(start_agent: StartAgent, tmp_path: Path) -> None:
    error = with_sudo(
        start_agent, tmp_path, "echo 'sh: 1: exec: sudo: not found' >&2; exit 127", "x"
    )
    assert error.what == "here: there is no sudo"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('shift 2; echo "sudo: $1: command not found" >&2; exit 1', "there is no python3"),
        ("echo 'sudo: unable to resolve host' >&2; exit 7", "the agent did not start"),
        ("echo 'sudo: unable to resolve host' >&2; echo Traceback >&2; exit 1", "did not start"),
    ],
)
def test_what_is_not_sudos_fault_is_not_blamed_on_sudo(
    start_agent: StartAgent, tmp_path: Path, body: str, message: str
) -> None:
    assert message in with_sudo(start_agent, tmp_path, body, "python3").what


# -- the wrong Python -----------------------------------------------------------------------


def test_no_python_names_the_host_and_the_key(start_agent: StartAgent) -> None:
    with pytest.raises(MacdError, match="here: there is no /no/such/python3") as caught:
        start_agent("/no/such/python3").call("ping")
    assert "the key `python` of host here" in caught.value.hint


def old_pythons() -> list[str]:
    versions = Path("~/.pyenv/versions").expanduser()
    old = ["2.7", *(f"3.{minor}" for minor in range(6, 11))]
    paths = [str(path) for each in old for path in versions.glob(f"{each}.*/bin/python")]
    paths += filter(None, (shutil.which(f"python{each}") for each in old))
    return [path for path in paths if os.system(f"{path} -c 1 2>/dev/null") == 0]


def test_a_python_too_old_says_so(start_agent: StartAgent, tmp_path: Path) -> None:
    """A real interpreter that believes to be 3.10: the loader must notice before anything else."""
    pretend = (
        "import sys\n"
        "sys.version_info = (3, 10, 18, 'final', 0)\n"
        "exec(compile(sys.argv[-1], '<loader>', 'exec'))\n"
    )
    (tmp_path / "pretend.py").write_text(pretend)
    python = script(
        tmp_path / "python3", f'#!/bin/sh\nexec {sys.executable} {tmp_path}/pretend.py "$2"\n'
    )
    with pytest.raises(MacdError, match=r"is Python 3\.10; macd needs 3\.11 or newer") as caught:
        start_agent(python).call("ping")
    assert "training" in caught.value.why
    assert caught.value.live == "nothing was done there"
    assert "the key `python` of host here" in caught.value.hint
    assert "apt-get install python3.11" in caught.value.hint


def test_a_really_old_python_says_so(start_agent: StartAgent) -> None:
    pythons = old_pythons()
    if not pythons:
        pytest.skip("no Python older than 3.11 here")
    for python in pythons:
        with pytest.raises(MacdError, match=r"is Python [23]\.\d+; macd needs 3\.11 or newer"):
            start_agent(python).call("ping")


def interpreter(minor: int) -> str | None:
    name = f"python3.{minor}"
    pyenv = sorted(Path("~/.pyenv/versions").expanduser().glob(f"3.{minor}.*/bin/{name}"))
    running = sys.executable if sys.version_info[1] == minor else None
    for path in [*map(str, pyenv), shutil.which(name), running]:
        if path and os.system(f"{path} -c 1 2>/dev/null") == 0:
            return path
    return None


def test_every_supported_python_here_runs_every_operation(
    start_agent: StartAgent, tmp_path: Path
) -> None:
    """The one that runs the tests is always there."""
    pythons = {minor: python for minor in range(11, 15) if (python := interpreter(minor))}
    assert sys.version_info[1] in pythons
    for minor, python in pythons.items():
        session = start_agent(python)
        facts = session.facts([str(tmp_path)])
        assert facts.python.version.startswith(f"3.{minor}.")
        assert session.run(["echo", "hello"]).stdout == b"hello\n"
        session.write(str(tmp_path / "f"), b"data")
        assert session.read(str(tmp_path / "f")) == b"data"
