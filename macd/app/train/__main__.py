"""`python -m macd.app.train`: flags and a settings file in, a finished run or one message out."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from macd.app.train.settings import read_settings
from macd.errors import ExitCode, MacdError
from macd.train_options import MIN_MOVE


def main(argv: Sequence[str] | None = None) -> int:
    arguments = vars(_parser().parse_args(argv))
    debug = arguments.pop("debug") or os.environ.get("MACD_DEBUG", "") not in ("", "0")
    signal.signal(signal.SIGTERM, _stop)
    try:
        settings = read_settings(arguments.pop("settings"), arguments)
        from macd.app.train.pipeline import run  # noqa: PLC0415 - torch takes seconds to import

        run(settings, clock=time.time, environment=os.environ)
    except MacdError as error:
        if debug:
            traceback.print_exception(error)
        return _report(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _report(
            "the training was stopped\n  do: the same command goes on where it was", ExitCode.FAILED
        )
    except ImportError as error:
        return _report(
            f"a package is missing: {error}\n  do: pip install 'macd[train]'", ExitCode.USAGE
        )
    except OSError as error:
        if debug:
            traceback.print_exception(error)
        return _report(
            f"the training could not read or write: {error}\n"
            "  do: check disk space (df -h) and permissions, then run the same command again",
            ExitCode.FAILED,
        )
    return ExitCode.DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m macd.app.train",
        description="Train LightGBM, LSTM, TFT and stacking on bars; check, export and judge them. "
        "Run again after an interruption: finished fits are kept.",
    )
    add = parser.add_argument
    add("--mode", help="all, or one of: verify, lgbm, lstm, tft, onnx, stacking (default all)")
    add("--tf", help="timeframe of the bars (default 1h)")
    add("--symbol", help="what to train on, e.g. ETHUSDT (default BTCUSD, the sample)")
    add("--symbols", help="several in one run, e.g. ETHUSDT,BTCUSDT: each gets models of its own")
    add("--cross", help="other assets whose bars help, e.g. BTCUSDT,SOLUSDT")
    add("--panel", help="assets that train global models too, e.g. BTCUSDT,SOLUSDT,ADAUSDT")
    add("--data", help="directory of canonical parquet files (default data/sample)")
    add("--out", help="directory of the run (default runs/local)")
    add("--cache", help="directory of finished fits, may be shared by runs (default OUT/cache)")
    add("--profile", help="demo or full (default demo)")
    add("--seed", type=int, help="same seed, same numbers on the same machine (default 7)")
    add("--engine", help="local or ray (default local)")
    add("--device", help="auto, cpu or cuda (default auto)")
    add("--workers", type=int, help="fits side by side (default: all cores, or what the GPUs hold)")
    add(
        "--min-move", type=float, help=f"train on |return| above this fraction (default {MIN_MOVE})"
    )
    add("--market", help="when bars must be there: crypto (always), fx, stocks or XHKG")
    add("--limits", help="other limits for the checks of bars, e.g. gap_error=36,spike_error=1.2")
    add(
        "--accept",
        action="append",
        help="a finding about the bars that is the market itself; may be repeated: "
        "check=spike,symbol=BTCUSDT,from=TIME,to=TIME,reason=WHY",
    )
    add("--settings", type=Path, help="JSON file with any of these and more; flags win")
    add("--debug", action="store_true", help="show tracebacks")
    return parser


def _report(text: str, code: int) -> int:
    sys.stderr.write(f"✗ {text}\n")
    return int(code)


def _stop(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
