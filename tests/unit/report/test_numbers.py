"""How figures are written: the same on every page."""

from __future__ import annotations

import pytest

from macd.report import numbers

NAN = float("nan")


@pytest.mark.parametrize(
    ("shown", "written"),
    [
        (numbers.auc(0.56721), "0.567"),
        (numbers.difference(0.0123), "+0.012"),
        (numbers.difference(-0.0123), "−0.012"),
        (numbers.difference(-0.0001), "0.000"),
        (numbers.basis_points(-2831.44), "−2,831.4"),
        (numbers.share(0.5), "50.0 %"),
        (numbers.gain(-0.4519), "−45.2 %"),
        (numbers.count(12345.4), "12,345"),
        (numbers.auc(None), "–"),
        (numbers.share(NAN), "–"),
        (numbers.count(None), "–"),
        (numbers.counted(1, "log"), "1 log"),
        (numbers.counted(1084, "line"), "1,084 lines"),
        (numbers.counted(0, "trade"), "0 trades"),
        (numbers.counted(1.0, "day"), "1 day"),
        (numbers.counted(2.5, "day"), "2.5 days"),
    ],
)
def test_one_figure(shown: str, written: str) -> None:
    assert shown == written


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ((0.567, 0.544, 0.589), "0.567 [0.544, 0.589]"),
        ((10.5, 10.05, 20.0), "10.500 [10.050, 20.000]"),
        ((0.5, None, 0.6), "0.500"),
        ((-0.02, -0.05, 0.01), "−0.020 [−0.050, 0.010]"),
        ((None, None, None), "not known"),
        ((NAN, 0.1, 0.2), "not known"),
    ],
)
def test_intervals(values: tuple[float | None, float | None, float | None], shown: str) -> None:
    assert numbers.interval(*values) == shown


def test_sentences_of_files_get_the_signs_of_print() -> None:
    assert numbers.typeset("AUC >= 0.57, gap <= -0.02 [-0.1, .3]") == (
        "AUC ≥ 0.57, gap ≤ −0.02 [−0.1, .3]"
    )
    assert numbers.typeset("2019-10-17 walk-forward 1e-07") == "2019-10-17 walk-forward 1e-07"
    assert numbers.typeset("-0.000 [-0.001, +0.000]") == "0.000 [−0.001, 0.000]"
