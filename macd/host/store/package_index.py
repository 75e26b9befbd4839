"""What pip is told of a package index, and its failures in one sentence a person can act on.

Apart from runtimes.py, which builds: nothing here runs anything.
"""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

from macd.host.failure import HostError

_NOT_REACHED = re.compile(r"connection broken by|Max retries exceeded|not a trusted or secure host")
_ANSWERED = re.compile(r"HTTP error (\d{3}) while getting")
_NOT_THERE = re.compile(r"No matching distribution found for (\S+)")
_OTHER_BYTES = "DO NOT MATCH THE HASHES"
_SECRET = re.compile(r"(://)[^/\s'\"@]+@")
_PASSED_ON = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
_LOCAL = ("127.0.0.1", "localhost", "::1")


def settings(index: bool, url: str) -> dict[str, str]:
    """The variables pip is started with; an address may hold a password, so it is never in argv.

    Args:
        index: packages come from an index; else from a directory, and no setting may interfere.
        url: which one; "" is what the host's own pip settings name.
    """
    if not index:
        return {"PIP_CONFIG_FILE": os.devnull}
    known = {name: os.environ[name] for name in _PASSED_ON if os.environ.get(name)}
    # Soon enough to be told while somebody waits, and not at the first lost packet.
    known.update(PIP_RETRIES="1", PIP_TIMEOUT="15")
    if not url:
        return {**known, **{k: v for k, v in os.environ.items() if k.startswith("PIP_")}}
    known.update(PIP_INDEX_URL=url, PIP_CONFIG_FILE=os.devnull)
    parts = urlsplit(url)
    if parts.scheme == "http" and parts.hostname not in _LOCAL:
        known["PIP_TRUSTED_HOST"] = parts.netloc  # the hashes in the lock prove what comes
    return known


def failure(said: str, *, index: bool) -> HostError:
    """What went wrong, from what pip wrote; a refusal, since nothing was changed."""
    lines = [line.strip() for line in _SECRET.sub(r"\1****@", said).splitlines() if line.strip()]
    missing, answered = _NOT_THERE.search(said), _ANSWERED.search(said)
    if index and _OTHER_BYTES in said:
        at = next(i for i, line in enumerate(lines) if _OTHER_BYTES in line)
        return _refusal(
            "the package index has other bytes than the release was made with",
            lines[at + 1 : at + 4],
            "find out who changed that wheel on the index; service.runtime: wheels sends the"
            " release's own",
        )
    if index and _NOT_REACHED.search(said):
        return _refusal(
            "the host did not reach its package index",
            [line for line in lines if _NOT_REACHED.search(line)][-1:],
            "mend service.index_url or the way there, then deploy again; service.runtime: wheels"
            " needs no index",
        )
    if index and answered:
        return _refusal(
            f"the package index answered {answered[1]} for a wheel",
            [line for line in lines if _ANSWERED.search(line)][:1],
            "mend the index (401 and 403: the password in service.index_url), then deploy again",
        )
    if index and missing:
        return _refusal(
            f"the package index has no wheel of {missing[1]} for this host",
            lines[-2:],
            "put the release's wheels on the index, or set service.runtime: wheels",
        )
    return _refusal(
        "installing the wheels failed",
        lines[-6:],
        "check the host's Python and libraries, or lock for them: invoke release",
    )


def _refusal(what: str, why: list[str], hint: str) -> HostError:
    return HostError(what, why="\n".join(why), hint=hint, live="unchanged", kind="refused")
