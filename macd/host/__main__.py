"""macd-host.pyz: what provision leaves on a production host, to act with nobody connected."""

from __future__ import annotations

import argparse
import sys

from macd.host import activation
from macd.host.failure import HostError
from macd.host.layout import Layout
from macd.host.record import recorder


def main() -> int:
    """Run or end the pending activation. Exit 0 when there is nothing left to do."""
    parser = argparse.ArgumentParser(prog="macd-host", description=__doc__)
    parser.add_argument("verb", choices=["activate", "recover"])
    parser.add_argument("--app", required=True, help="application directory")
    parser.add_argument("--booting", action="store_true", help="the service starts after us")
    arguments = parser.parse_args()
    layout = Layout(arguments.app)
    try:
        outcome = activation.carry_on(layout, recorder(layout), booting=arguments.booting)
    except HostError as error:
        print(f"macd-host: {error}: {error.why}", file=sys.stderr)
        return 1
    print(f"macd-host: {outcome}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
