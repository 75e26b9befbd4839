"""How pip is led to a package index, and what its words mean when it did not get there.

Pure but for the environment of this process, which names the host's proxy. No password is shown.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from macd.host import untrusted
from macd.host.failure import HostError

# Of the host, whichever index is asked: the way to it, and whose certificates are trusted.
_PROXY = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_PASSED_ON = (
    *_PROXY,
    *(name.lower() for name in _PROXY),
    *("PIP_PROXY", "PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"),
)
_LOCAL = ("127.0.0.1", "localhost", "::1")
_SECRET = re.compile(r"(://)[^/\s'\"@]+@")
_OTHER_BYTES = "DO NOT MATCH THE HASHES"
_NOT_THERE = re.compile(r"No matching distribution found for (\S+)")
_NOT_FETCHED = re.compile(r"Could not fetch URL \S+: (.+?)(?: - skipping)?$", re.MULTILINE)
_LONGEST = 500
_WHEELS = "service.runtime: wheels needs no index"
_ENVIRONMENT = "where the login's environment has it (such as /etc/environment)"


@dataclass(frozen=True)
class _Cause:
    """Words of pip (25.3), the sentence for them, and what helps; {0} is the words' first group."""

    words: str
    what: str
    hint: str


# The first that fits counts. Each was recorded from pip against a server that does it
# (tests/local/test_index_ways.py).
_CAUSES = (
    _Cause(
        r"Tunnel connection failed: 407|407 Client Error",
        "the proxy on the way to the package index wants a login (407)",
        f"HTTPS_PROXY=http://USER:PASSWORD@PROXY:PORT on the host, {_ENVIRONMENT}",
    ),
    _Cause(
        r"Tunnel connection failed: (\d+)",
        "the proxy does not let the host to its package index ({0})",
        "have the proxy allow the index, or name the index in NO_PROXY on the host",
    ),
    _Cause(
        r"proxy appears to only use HTTP",
        "the host speaks TLS to a proxy that does not",
        f"HTTPS_PROXY=http://PROXY:PORT on the host (http, for https indexes too), {_ENVIRONMENT}",
    ),
    _Cause(
        r"Missing dependencies for SOCKS support",
        "the host's proxy is a SOCKS proxy, which pip does not know by itself",
        f"an HTTP proxy in HTTPS_PROXY, {_ENVIRONMENT}",
    ),
    _Cause(
        r"Cannot connect to proxy",
        "the host did not reach the proxy on the way to its package index",
        f"mend HTTPS_PROXY on the host, {_ENVIRONMENT}; where the index needs no proxy, name it in"
        " NO_PROXY",
    ),
    _Cause(
        r"Hostname mismatch|IP address mismatch|doesn't match",
        "the package index has a certificate for another name",
        "service.index_url: the name that is in its certificate",
    ),
    _Cause(
        r"check_hostname requires server_hostname",
        "pip can't check the certificate of a package index that is named by its IP address",
        "service.index_url: the name of the index, as in its certificate",
    ),
    _Cause(
        r"certificate has expired|certificate is not yet valid",
        "the certificate of the package index is not valid now",
        "renew it; or set the host's clock: timedatectl set-ntp true",
    ),
    _Cause(
        r"CERTIFICATE_VERIFY_FAILED",
        "the host does not trust the certificate of its package index (or of a proxy before it)",
        "put the certificate of its CA on the host: /usr/local/share/ca-certificates/NAME.crt and"
        " update-ca-certificates (RHEL: /etc/pki/ca-trust/source/anchors, update-ca-trust);"
        f" or PIP_CERT=FILE {_ENVIRONMENT}",
    ),
    _Cause(
        r"(?:TLS|SSL) CA certificate bundle, invalid path: (\S+)",
        "the file that names the trusted certificates is not on the host: {0}",
        f"mend PIP_CERT or REQUESTS_CA_BUNDLE {_ENVIRONMENT}, or cert in its pip.conf",
    ),
    _Cause(
        r"WRONG_VERSION_NUMBER|UNKNOWN_PROTOCOL",
        "the package index does not speak TLS there",
        "service.index_url: its port for https, or http://",
    ),
    _Cause(
        r"(?:HTTP error |^|: )(401|403)(?: while getting| Client Error)",
        "the package index refuses the host ({0})",
        "mend the login in service.index_url, or the rights of that account on the index",
    ),
    _Cause(
        r"HTTP error (\d{3}) while getting",
        "the package index answered {0} for a wheel",
        "mend the index",
    ),
    _Cause(
        r"too many (\d{3}) error responses",
        "the package index, or a proxy before it, answered {0}",
        "mend the index or the proxy",
    ),
    _Cause(
        r"connection broken by|Max retries exceeded|not a trusted or secure host",
        "the host did not reach its package index",
        "mend service.index_url or the network",
    ),
)


def settings(index: bool, url: str) -> dict[str, str]:
    """The variables pip is started with; an address may hold a password, so it is never in argv.

    Args:
        index: packages come from an index; else from a directory, and no setting may interfere.
        url: which one; "" is what the host's own pip settings name.
    """
    if not index:
        return {"PIP_CONFIG_FILE": os.devnull}
    variables = {name: os.environ[name] for name in _PASSED_ON if os.environ.get(name)}
    # Fail while somebody waits, but not at the first lost packet.
    variables.update(PIP_RETRIES="1", PIP_TIMEOUT="15")
    if not url:
        return {**variables, **{k: v for k, v in os.environ.items() if k.startswith("PIP_")}}
    variables.update(PIP_INDEX_URL=url, PIP_CONFIG_FILE=os.devnull)
    parts = urlsplit(url)
    if parts.scheme == "http" and parts.hostname not in _LOCAL:
        variables["PIP_TRUSTED_HOST"] = parts.netloc  # the hashes in the lock prove what comes
    return variables


def failure(said: str, *, index: bool, log: str = "") -> HostError:
    """What went wrong, from what pip wrote; a refusal, since nothing was changed.

    log: what it wrote with --log. Only there it says why it passed over an index's page.
    """
    lines = [line.strip() for line in _SECRET.sub(r"\1****@", said).splitlines() if line.strip()]
    if index and _OTHER_BYTES in said:
        at = next(i for i, line in enumerate(lines) if _OTHER_BYTES in line)
        return _refusal(
            "the package index has other bytes than the release was made with",
            lines[at + 1 : at + 4],
            "find out who changed that wheel on the index; service.runtime: wheels sends the"
            " release's own",
        )
    passed_over = [match[1] for match in _NOT_FETCHED.finditer(_SECRET.sub(r"\1****@", log))]
    if index and (refusal := _known_failure([*lines, *passed_over[-1:]])):
        return refusal
    if index and (missing := _NOT_THERE.search(said)):
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


def _known_failure(lines: list[str]) -> HostError | None:
    for cause in _CAUSES:
        for line in reversed(lines):
            if words := re.search(cause.words, line):
                what = cause.what.format(*(untrusted.line(word, 100) for word in words.groups()))
                hint = f"{cause.hint}; then deploy again; {_WHEELS}"
                return _refusal(what, [untrusted.line(line, _LONGEST)], hint)
    return None


def _refusal(what: str, why: list[str], hint: str) -> HostError:
    return HostError(what, why="\n".join(why), hint=hint, live="unchanged", kind="refused")
