"""Tell people that the guard took stacking back: one POST from the host, that never fails a thing.

The address is in state/notify.json, which provision writes for root (or the login) alone; it holds
a token as a rule, so it is in no record, message or argument.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from macd.host.layout import Layout, load

FILE = "notify.json"
_TIMEOUT_S = 10.0


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the message, and what the address knows, to somebody else."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def tell(layout: Layout, message: dict[str, Any]) -> str:
    """Send `message` as JSON. Returns "" when nobody is to be told, "told", or what went wrong."""
    try:
        url = (load(layout.state(FILE), None) or {}).get("url")
        if not url:
            return ""
        if not url.startswith(("https://", "http://")):
            return "not sent: no web address"
        asked = urllib.request.Request(  # noqa: S310 - web addresses only, see above
            url,
            data=json.dumps(message).encode(),
            headers={"Content-Type": "application/json", "User-Agent": "macd-guard"},
            method="POST",
        )
        with urllib.request.build_opener(_NoRedirect).open(asked, timeout=_TIMEOUT_S):
            return "told"
    except urllib.error.HTTPError as error:
        return "the address answered %d" % error.code
    except urllib.error.URLError as error:
        return "the address was not reached: %s" % type(error.reason).__name__
    except Exception as error:  # whatever it is, its text may hold the address
        return "not sent: %s" % type(error).__name__
