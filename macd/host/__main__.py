"""macd-host.pyz: the program that provision installs on a production host, to act by itself."""

from __future__ import annotations

import argparse
import os
import sys
import time

from macd.host.deploy import activation
from macd.host.failure import HostError
from macd.host.layout import Layout
from macd.host.record import recorder

# In seconds. At boot the service waits for us, since it must not start on half of a change. So we
# retry for a minute ourselves: systemd's Restart= would let it start after the first failure.
_PAUSES = (1, 2, 4, 8, 15, 30, 60)
_PAUSES_AT_BOOT = (0.5, 0.5, 1, 2, 4, 8, 15, 30)


def main() -> int:
    """Run or end what is pending, or the guard, or look for alarms. Exit 0: nothing left to do."""
    if sys.argv[1:2] == ["guard"]:
        from macd.host.flag import guard  # noqa: PLC0415 - an activation starts sooner without

        return guard.main()
    if sys.argv[1:2] == ["alerts"]:
        from macd.host.alerts import look  # noqa: PLC0415 - likewise

        return look.main()
    parser = argparse.ArgumentParser(prog="macd-host", description=__doc__)
    parser.add_argument("verb", choices=["activate", "recover"])
    parser.add_argument("--app", required=True, help="application directory")
    parser.add_argument("--booting", action="store_true", help="the service starts after us")
    arguments = parser.parse_args()
    layout = Layout(arguments.app)
    os.umask(0o022)
    for pause in _PAUSES_AT_BOOT if arguments.booting else _PAUSES:
        try:
            outcome = activation.resume(
                layout,
                recorder(layout),
                start=arguments.verb == "activate",
                booting=arguments.booting,
            )
            if arguments.verb == "recover":
                from macd.host.flag import flag as flags  # noqa: PLC0415 - an activation starts sooner without

                flag = flags.recover(layout, recorder(layout), booting=arguments.booting)
                if flag != "nothing":
                    print(f"macd-host: stacking flag {flag}")
        except (HostError, OSError) as error:
            print(f"macd-host: {error}: {getattr(error, 'why', '')}", file=sys.stderr, flush=True)
            time.sleep(pause)  # a full disk may have room again, a busy systemd an answer
            continue
        print(f"macd-host: {outcome}")
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
