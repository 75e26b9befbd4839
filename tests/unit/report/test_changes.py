"""What the page says of another run: the verdict, the figures of both, and what differs."""

from __future__ import annotations

from typing import Any

from macd.app.pages.changes import changes


def difference(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.01, "high": value + 0.01}


def model(there: float, here: float) -> dict[str, Any]:
    return {
        "champion": {"auc": there},
        "challenger": {"auc": here},
        "difference": {"auc": difference(here - there)},
    }


DOCUMENT: dict[str, Any] = {
    "tf": "1h",
    "champion": {"run": "20260301T000000Z-a"},
    "challenger": {"run": "20260401T000000Z-b"},
    "parts": {
        "5h": {
            "val_all": {"n": 900, "models": {"stacking": model(0.55, 0.56)}},
            "test_all": {"n": 90, "models": {"stacking": model(0.54, 0.53)}},
        }
    },
    "differs": {
        "settings": {"params.lstm.epochs": [3, 5], "panel": [None, "x" * 90]},
        "features": {"lgbm": {"gained": [f"ret_{n}" for n in range(1, 15)], "lost": []}},
    },
    "limits": ["900 bars are left out"],
    "verdict": {"text": "On these bars the challenger is not shown to be better: -0.010"},
}


def test_both_figures_and_their_difference_stand_in_a_row() -> None:
    (made,) = changes({"the previous run": DOCUMENT})
    assert made.title == "Against the previous run, 20260301T000000Z-a"
    assert made.verdict == "On these bars this run is not shown to be better: −0.010"
    assert made.figures is not None
    assert made.figures.rows == [
        (
            "Stacking 5h",
            *("0.550", "0.560", "+0.010 [0.000, +0.020]"),
            *("0.540", "0.530", "−0.010 [−0.020, 0.000]"),
        )
    ]
    assert len(made.figures.head) == len(made.figures.rows[0])
    assert made.limits == ("900 bars are left out",)


def test_what_differs_is_said_in_words() -> None:
    (made,) = changes({"what is live": DOCUMENT})
    epochs, panel, features = made.differs or ()
    assert epochs == "Settings, params LSTM epochs: 3 → 5"
    assert panel == f"Settings, panel: – → {'x' * 59}…"
    assert features.startswith(
        "Features of LightGBM: lost none; gained return of 1 bar, return of 2"
    )
    assert features.endswith(" and 2 more")


def test_without_a_bar_in_common_there_is_no_table_of_dashes() -> None:
    none = {part: {**DOCUMENT["parts"]["5h"][part], "n": 0} for part in ("val_all", "test_all")}
    (made,) = changes({"the previous run": {**DOCUMENT, "parts": {"5h": none}}})
    assert made.figures is None
    assert made.differs


def test_nothing_compared_nothing_said() -> None:
    assert changes({}) == []


def test_a_run_that_cannot_be_compared_is_named_with_the_cause() -> None:
    (made,) = changes({"the previous run": {"unable": "the two runs have no tested bar in common"}})
    assert made.verdict == "not compared, the two runs have no tested bar in common."
    assert made.figures is None
