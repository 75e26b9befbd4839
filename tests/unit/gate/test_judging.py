"""The logs are judged by a process without rights; what it may not do ends it, not the guard."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from macd.host.judge import gate, judging
from tests.support import signal_lines
from tests.support.gate_rule import RULE

NOW = datetime(2026, 3, 3, 12, tzinfo=UTC)
ORDER: dict[str, Any] = {
    "release": signal_lines.RELEASE,
    "since": (NOW - timedelta(hours=26)).timestamp(),
    "until": (NOW + timedelta(hours=1)).timestamp(),
    "every_s": 7200.0,
    "rule": {**RULE.__dict__, "rule": "sequential"},
}
# A process of its own: a fork of pytest would be larger than any bound on memory.
PROGRAM = """
import json, sys
from datetime import datetime
from pathlib import Path
from macd.host.judge import judging
if sys.argv[4]:
    exec(sys.argv[4])
try:
    judgement = judging.judge(
        Path(sys.argv[1]), json.loads(sys.argv[2]), datetime.fromisoformat(sys.argv[3]),
        **json.loads(sys.argv[5]),
    )
except judging.CannotJudgeError as error:
    print(f"cannot: {error}")
else:
    print(json.dumps([judgement.verdict, judgement.reasons, judgement.rates, judgement.document]))
"""


def judged(live: Path, before: str = "", **limits: Any) -> str:
    """What the judgement says. before: what is run there first."""
    words = [str(live), json.dumps(ORDER), NOW.isoformat(), before, json.dumps(limits)]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def write(live: Path, n: int = 25) -> None:
    signal_lines.write(live, signal_lines.lines(n, end=NOW, every=timedelta(hours=1)))


def test_it_says_what_the_lines_say(tmp_path: Path) -> None:
    write(tmp_path)
    verdict, reasons, rates, document = json.loads(judged(tmp_path))
    decision, wanted = judging.evaluate(tmp_path, ORDER, NOW)
    assert (verdict, reasons) == (decision.verdict, list(decision.reasons))
    assert rates["ml_coverage"] == [25, 25]
    assert document == json.loads(json.dumps(wanted))


def test_drift_is_in_the_report_of_a_release_that_says_what_to_expect(tmp_path: Path) -> None:
    lines = signal_lines.lines(
        25, end=NOW, every=timedelta(hours=1), ml_features_outside=60, ml_feature_worst="rsi_14"
    )
    signal_lines.write(tmp_path, lines)
    blocks = {
        "count": 50,
        "features": 80,
        **{name: {"mean": 0.01, "spread": 0.01} for name in ("outside", "worst")},
    }
    details = {"symbol": "BTCUSD", "drift": {"block": 168, "assets": {"BTCUSD": blocks}}}
    decision, document = judging.evaluate(tmp_path, {**ORDER, "details": details}, NOW)
    assert decision.verdict == judging.evaluate(tmp_path, ORDER, NOW)[0].verdict
    assert (document["drift"]["outcome"], document["drift"]["feature"]) == ("drift", "rsi_14")
    assert document["drift"]["bars"] == 25
    assert judging.evaluate(tmp_path, ORDER, NOW)[1]["drift"] is None


def test_a_bound_on_memory_ends_it_and_nobody_else(tmp_path: Path) -> None:
    write(tmp_path)
    name = tmp_path / f"trades_{NOW:%Y%m%d}.jsonl"
    with name.open("ab") as file:
        file.write(b'{"a": [' + b"[],[[]]," * 120_000 + b"0]}\n")
    assert json.loads(judged(tmp_path))[0] == gate.INCONCLUSIVE
    assert judged(tmp_path, memory=48 << 20) == "cannot: it needed more than 48 MiB of memory"


def test_a_log_without_an_end_ends_with_the_time(tmp_path: Path) -> None:
    name = tmp_path / f"trades_{NOW:%Y%m%d}.jsonl"
    name.touch()
    os.truncate(name, 1 << 43)  # no byte of it is on the disk
    assert judged(tmp_path, within_s=0.5) == "cannot: no answer within 0.5 s"


def test_one_that_is_killed_is_no_judgement(tmp_path: Path) -> None:
    write(tmp_path)
    kill = (
        "import os\nfrom macd.host.judge import judging\n"
        f"judging.evaluate = lambda *_: os.kill(os.getpid(), {int(signal.SIGKILL)})"
    )
    assert judged(tmp_path, kill) == "cannot: it was killed by signal 9"


def test_what_goes_wrong_in_it_is_told_short_and_printable(tmp_path: Path) -> None:
    fail = (
        "from macd.host.judge import judging\ndef evaluate(*_):\n"
        "    raise OSError('\\x1b[31m' + 'x' * 9999)\njudging.evaluate = evaluate"
    )
    message = judged(tmp_path, fail)
    assert message.startswith("cannot: OSError: xxx")
    assert len(message) < 400


def test_more_files_than_anybody_reads_are_no_judgement(tmp_path: Path) -> None:
    for n in range(10_001):
        (tmp_path / f"trades_{n:08}.jsonl").touch()
    assert judged(tmp_path) == "cannot: ValueError: more than 10000 files in data/live"


SPY = """
import os, resource
from macd.host.judge import judging
here = os.dup2(os.open("/", os.O_RDONLY), 77)
def evaluate(*_):
    fds = sorted(map(int, os.listdir("/proc/self/fd")))
    limits = [resource.getrlimit(which)[0] for which in (resource.RLIMIT_CORE,
              resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC)]
    raise ValueError(f"{os.getresuid()} {os.getresgid()} {os.getgroups()} {limits} {here in fds}")
judging.evaluate = evaluate
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights to give up")
def test_it_has_the_rights_of_whoever_owns_the_logs() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's are root's alone
        top = Path(name)
        top.chmod(0o755)
        live = top / "live"
        live.mkdir()
        os.chown(live, 4321, 1234)
        message = judged(live, SPY)
        rights = "(4321, 4321, 4321) (1234, 1234, 1234) [] [0, 0, 0] False"
        assert message == f"cannot: ValueError: {rights}"
        secret = top / "secret"
        secret.write_text("root's own\n")
        secret.chmod(0o600)
        (live / f"trades_{NOW:%Y%m%d}.jsonl").symlink_to(secret)
        assert judged(live).startswith("cannot: PermissionError:")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"junk",
        b"[]",
        b'{"verdict": "MAYBE", "reasons": [], "criteria": []}',
        b'{"verdict": "PASS", "reasons": 3, "criteria": []}',
        b'{"verdict": "PASS", "reasons": [], "criteria": [{"name": "x"}]}',
        b'{"verdict": "PASS", "reasons": [], "criteria": [7]}',
        b'{"verdict": "PASS", "reasons": [],'
        b' "criteria": [{"name": "x", "successes": Infinity, "trials": 1}]}',
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_an_answer_nobody_understands_is_no_judgement(raw: bytes) -> None:
    with pytest.raises(judging.CannotJudgeError, match="can't be understood"):
        judging._understood(raw)
