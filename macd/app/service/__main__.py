"""Start the service (app/serve.py of a release calls this): `--root APP_DIR`.

`--check` proves that it would work, `--replay` repeats bars for an audit; both end by themselves.

Exit codes: 0 stopped as asked or check passed, 1 failed, 2 unusable settings, 6 another one runs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Event

_THREADS = {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    for name, value in _THREADS.items():  # read once, when the libraries are imported
        os.environ.setdefault(name, value)
    # Its own name and errors only now: importing them loads polars.
    from macd.errors import MacdError  # noqa: PLC0415

    try:
        if options.check:
            from macd.app.service.release import check  # noqa: PLC0415

            root = Path(options.root).absolute()
            result = check(Path(options.release or root / "current"), root)
            sys.stdout.write(json.dumps(result) + "\n")
            return 0 if result["ok"] else 1
        if options.replay:
            return _replay(Path(options.root).absolute(), options.release)
        return _serve(Path(options.root).absolute(), options.symbol)
    except MacdError as error:
        sys.stderr.write(f"{error}\n")
        return int(error.exit_code)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="serve.py", description=__doc__)
    parser.add_argument("--root", required=True, help="the application's directory")
    parser.add_argument("--symbol", default="", help="serve this one alone, as an instance")
    parser.add_argument("--check", action="store_true", help="only prove that it would work")
    parser.add_argument("--replay", action="store_true", help="answer an audit's question on stdin")
    parser.add_argument("--release", default="", help="the release for both (default: current)")
    return parser.parse_args(argv)


def _replay(root: Path, wanted: str) -> int:
    from macd.app.service.replay import answers  # noqa: PLC0415

    question = json.load(sys.stdin)
    for line in answers(question, root, Path(wanted or root / "current")):
        sys.stdout.write(json.dumps(line, separators=(",", ":")) + "\n")
    return 0


def _asked_to_stop() -> Event:
    """Is set by SIGTERM and Ctrl-C."""
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _serve(root: Path, symbol: str = "") -> int:
    from macd.app.service import release  # noqa: PLC0415
    from macd.app.service.feed import open_feed  # noqa: PLC0415
    from macd.app.service.health import HealthServer, Status, Systemd, inherited_socket  # noqa: PLC0415
    from macd.app.service.loop import Loop, StoppedError  # noqa: PLC0415
    from macd.app.service.settings import Settings, flags  # noqa: PLC0415
    from macd.app.service.signal_log import SignalLog  # noqa: PLC0415
    from macd.app.service.starting import challengers, served_of  # noqa: PLC0415

    stop = _asked_to_stop()
    settings = Settings.read(root)
    if symbol:
        settings = settings.of_instance(symbol)
    wanted = flags(os.environ)
    status = Status(wanted.shown, wanted.weight)
    systemd = Systemd(os.environ)
    health = HealthServer(settings.endpoint, status, inherited_socket(os.environ))
    health.start()
    log = None
    try:
        identity = release.identify(root / "current")
        status.set(release=identity.id, manifest_sha256=identity.sha256)
        log = SignalLog(settings.live, symbols=settings.served, writer=settings.writer)
        status.set(seq=log.seq)
        served, why = served_of(identity, settings, wanted, status)

        def alive() -> None:
            systemd.notify("WATCHDOG=1")

        loop = Loop(
            settings,
            identity.id,
            served,
            open_feed(settings, alive),
            log,
            status,
            stop=stop,
            alive=alive,
        )
        if why or wanted.problem:
            status.error(why or wanted.problem)
        # The models are as ready as they get; a feed that is down is no reason to be restarted.
        status.set(status="failed" if why else "ok")
        systemd.notify("READY=1", f"STATUS={why or 'serving ' + identity.id}")
        if log.torn:
            loop.say("torn_line", f"{log.torn} bytes of a line were left by an earlier life")
        challengers(served, identity.id, wanted, status)
        loop.begin()
        loop.run()
        return 0
    except StoppedError:
        return 0
    finally:
        systemd.notify("STOPPING=1")
        health.close()
        if log is not None:
            log.close()


if __name__ == "__main__":
    sys.exit(main())
