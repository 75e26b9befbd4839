"""`invoke demo`: the whole story on the embedded lab with the sample bars, by the very commands."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from macd.cli.verb import emit, verb
from macd.errors import ExitCode, MacdError
from macd.run_directory import read_json


@dataclass(frozen=True)
class Step:
    """A command of the demo, its title, and the exit status it must have.

    script: a shell command instead of a verb. patience: seconds to repeat it after exit 3.
    """

    say: str
    argv: tuple[str, ...] = ()
    ends: int = ExitCode.DONE
    script: str = ""
    patience: float = 0


_AGAIN_S = 2
_OURS = ("MACD_", "ML_")  # what a user set for other hosts and trainings must not change the demo
MISTAKEN = ".lab/mistaken"
MISTAKE = "Loop.run = lambda self: 1 / 0  # loads and answers, then ends at the first turn"
STORY = (
    Step("three hosts on this machine: jump, h800 behind it, prod", ("lab.up",)),
    Step("h800 answers, through the jump host only", ("facts", "--host", "h800")),
    Step("the bars are checked before anything is trained", ("data.verify",)),
    Step("train on h800; the models come back here", ("train", "--host", "h800")),
    Step("models, code and lock become one signed release", ("release",)),
    Step("load and run every model", ("health",)),
    Step("prepare prod: account, units, keys; once", ("provision", "--env", "prod", "--yes")),
    Step("what a deploy would change", ("plan", "--env", "prod")),
    Step("send, verify there, switch, soak, commit", ("deploy", "--env", "prod", "--yes")),
    Step("a second release of the same run; the service keeps running", ("release",)),
    Step("did the models work in shadow? the gate needs 20 bars", ("shadow-gate",), patience=90),
    Step("then let stacking decide; a guard on the host watches it", ("enable-stacking", "--yes")),
    Step("look for known failures", ("doctor",)),
    Step("only what differs travels", ("deploy", "--env", "prod", "--yes")),
    Step("go back, with nothing sent", ("rollback", "--yes")),
    Step(
        "a mistake that no check here can see: the code of the service, changed by one line",
        script=f"rm -rf {MISTAKEN} && mkdir {MISTAKEN} && cp -R macd pyproject.toml README.md "
        f"{MISTAKEN} && echo {shlex.quote(MISTAKE)} >> {MISTAKEN}/macd/app/service/loop.py",
    ),
    Step("the mistake becomes a release", ("release", "--source", MISTAKEN)),
    Step(
        "the host notices and reverts by itself: exit status 4",
        ("deploy", "--env", "prod", "--yes"),
        ends=ExitCode.REVERTED,
    ),
    Step("what is live now", ("status",)),
    Step("and why", ("why",)),
    Step("the record of all that", ("history",)),
)
LAST = Step("end what the demo started", ("lab.down",))
LEFT_UP = "the lab ran before the demo and keeps running; invoke lab.down stops it"


@verb(
    help={
        "keep": "leave the lab running at the end",
        "json": "print one JSON document for machines, at the end",
    }
)
def demo(c: Any, keep: bool = False, json: bool = False) -> None:
    """Run the whole story on embedded hosts with sample data, printing each command."""
    from macd import lab
    from macd.inventory import project_root

    root = project_root()
    was_running = lab.status(root).running
    began = time.monotonic()
    steps = []
    try:
        for number, step in enumerate(STORY, start=1):
            steps.append(_run(root, step, f"{number}/{len(STORY)}", aside=json))
    finally:
        if not keep and not was_running:
            steps.append(_run(root, LAST, "end", aside=json))
    spent = time.monotonic() - began
    if json:
        emit({"seconds": round(spent, 1), "steps": steps})
        return
    print(f"\n✓ the demo finished in {spent / 60:.1f} minutes")
    print(f"{f'  {LEFT_UP}' if was_running else ''}\nwhere to look")
    for what, where in _places(root):
        print(f"  {what:<22}{where}")
    if worth := _stacking_worth(root):
        print(f"\n{worth}")


def _run(root: Path, step: Step, place: str, *, aside: bool) -> dict[str, Any]:
    """Run one command as a user would, its output shown as it comes (`aside`: on stderr).

    On the embedded lab, whatever inventory or setting is exported: a demo must never reach other
    hosts, and goes the same way for everybody.

    Raises:
        MacdError: it ended with another exit status than expected.
    """
    shown = step.script or shlex.join(["invoke", *step.argv])
    out = sys.stderr if aside else sys.stdout
    print(f"\n── {place}  {step.say}\n$ {shown}", file=out, flush=True)
    invoke = str(Path(sys.executable).with_name("invoke"))
    argv = ["/bin/sh", "-c", step.script] if step.script else [invoke, *step.argv]
    began = time.monotonic()
    env = {name: text for name, text in os.environ.items() if not name.startswith(_OURS)}
    env |= {"MACD_INVENTORY": "lab", "MACD_ROOT": str(root)}
    while True:
        ended = subprocess.run(argv, cwd=root, env=env, stdout=out, check=False).returncode
        if ended != ExitCode.INCONCLUSIVE or time.monotonic() - began > step.patience:
            break
        print(f"  once more in {_AGAIN_S} s", file=out, flush=True)
        time.sleep(_AGAIN_S)
    if ended != step.ends:
        raise MacdError(
            f"the demo stopped: `{shown}` ended with {ended}, {int(step.ends)} was expected",
            why="its output above says more",
            hint="invoke demo --keep  leaves the lab up where it stops, to try that step by hand",
        )
    return {"command": shown, "exit": ended, "seconds": round(time.monotonic() - began, 1)}


def _stacking_worth(root: Path) -> str:
    """What the newest training said stacking is worth beside the mean; "" where it said nothing."""
    newest = max(root.glob("runs/*/result.json"), default=None)
    return str(read_json(newest, {}).get("stacking_worth", "")) if newest else ""


def _places(root: Path) -> list[tuple[str, str]]:
    live = root / ".lab/hosts/prod/home/macd-analysis/current"
    pages = (
        ("training report", "runs/*/report.html"),
        ("card of what is live", f"releases/{live.readlink().name}/card.html"),
        ("gate report", ".macd/lab/gate/*/*/report.html"),
    )
    newest = [(what, max(root.glob(pattern), default=None)) for what, pattern in pages]
    places = [(what, str(path.relative_to(root))) for what, path in newest if path]
    return [*places, ("journal", ".macd/lab/journal.jsonl"), ("the lab's hosts", ".lab/hosts")]
