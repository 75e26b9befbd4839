"""The application's own checks, as a program: `python -m macd.app.predict COMMAND`.

The tool starts it through macd/application.py, in a limited child process, with one JSON document
in and one out. It answers an error in the place of its result: `{"error": {"what", "why", ...}}`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from macd import childprocess
from macd.checklist import Item, of_several
from macd.errors import MacdError, failure
from macd.run_directory import FILES, symbols_in

Document = dict[str, Any]


def check(question: Document) -> Document:
    """Check a release. In: top, tf, lock (package -> version, or null), symbol. Out: items."""
    from macd.app.predict import health  # noqa: PLC0415 - each command loads what it needs

    symbol = question.get("symbol", "")
    items = health.check(
        Path(question["top"]), tf=question["tf"], lock=question["lock"], symbol=symbol
    )
    return {"items": _plain(items)}


def check_run(question: Document) -> Document:
    """Check a training run on the bars here, of several symbols each. In: run, data. Out: items."""
    from macd.app.predict import golden, health  # noqa: PLC0415

    run = Path(question["run"])
    if symbols := symbols_in(run):
        parts = {name: {**question, "run": FILES.of_symbol(run, name)} for name in symbols}
        answers = {name: check_run(part)["items"] for name, part in parts.items()}
        by_symbol = {name: [Item(**item) for item in items] for name, items in answers.items()}
        return {"items": _plain(of_several(by_symbol))}
    trained_on = golden.TrainedOn.of_run(run)
    inputs = golden.inputs(*trained_on.read(Path(question["data"])))
    items = health.check(run, tf=trained_on.tf, inputs=inputs)
    return {"items": _plain(items)}


def prove(question: Document) -> Document:
    """Make the golden predictions of a release and check it with them.

    In: top (the release's files), run, data, digest, lock. Out: golden, features_schema, items.
    """
    from macd.app.predict import golden, health  # noqa: PLC0415
    from macd.app.predict.scoring import MODELS, ModelError, Scorer  # noqa: PLC0415

    top, run = Path(question["top"]), Path(question["run"])
    trained_on = golden.TrainedOn.of_run(run)
    bars, cross = trained_on.read_same(Path(question["data"]), run=run, digest=question["digest"])
    try:
        scorer = Scorer.load(top / MODELS, trained_on.tf)
    except ModelError as error:
        raise MacdError(
            f"the models of run {run.name} can't be loaded",
            why=str(error),
            live="no release was made",
            hint="invoke health --run shows each; then train again",
        ) from error
    document = {"symbol": trained_on.symbol, **golden.make(bars, cross, scorer)}
    items = health.check(top, tf=trained_on.tf, lock=question["lock"], document=document)
    return {"golden": document, "features_schema": scorer.schema, "items": _plain(items)}


def folder(question: Document) -> Document:
    """Check a folder of models that no run here made. In: top, own. Out: items.

    own: it is an application of the team's own, which may have none that can be run here.
    """
    from macd.app.predict import modelfolder  # noqa: PLC0415

    top, own = Path(question["top"]), bool(question.get("own"))
    return {"items": _plain(modelfolder.check(top, must_run=not own))}


COMMANDS: dict[str, Callable[[Document], Document]] = {
    "check": check,
    "check-run": check_run,
    "prove": prove,
    "folder": folder,
}


def answer(command: str, question: Document) -> Document:
    """The answer of a command; a failure is an answer too."""
    try:
        return COMMANDS[command](question)
    except MacdError as error:
        return failure(error)


def _plain(items: list[Item]) -> list[Document]:
    return [asdict(item) for item in items]


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        childprocess.main(lambda question: answer(sys.argv[1], question))
    else:
        sys.exit(f"usage: python -m macd.app.predict {{{','.join(COMMANDS)}}}")
