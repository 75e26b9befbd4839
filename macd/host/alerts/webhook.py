"""The one sender of this host: messages of guard and alerts to a webhook, and the heartbeat.

The addresses are in state/notify.json, which only root (or the login) may read. They usually hold a
token, so no record, message or argument names one. What each kind of webhook wants and answers is a
table, from the documents of each:
  slack     docs.slack.dev/messaging/sending-messages-using-incoming-webhooks, and
            docs.slack.dev/messaging/formatting-message-text (&, < and > are escaped)
  discord   discord.com/developers/docs/resources/webhook, and discord.com/developers/docs/
            resources/message#allowed-mentions-object (a text with @everyone calls nobody)
  feishu    open.feishu.cn/document/client-docs/bot-v3/add-custom-bot (<at user_id="all"> would
            call everybody)
  dingtalk  open.dingtalk.com/document/robots/custom-robot-access, and
            open.dingtalk.com/document/robots/customize-robot-security-settings
  wecom     developer.work.weixin.qq.com/document/path/91770
"""

from __future__ import annotations

import base64
import hmac
import json
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

from macd.host import untrusted
from macd.host.layout import Layout, load

SENT = "sent"
ADDRESSES = "notify.json"
_WITHIN_S = 10.0
_LONGEST_ANSWER = 64 << 10
_TUNNEL = re.compile(r"Tunnel connection failed: (\d+)")
# X509_V_ERR_* of OpenSSL's x509_vfy.h.
_CERTIFICATES = {
    9: "is not valid yet",
    10: "has expired",
    62: "is for another name",
    64: "is for another name",
}
_AT = re.compile(r"<(?=/?at\b)", re.IGNORECASE)
_LONGEST_TEXT = 1900  # bytes; WeCom takes 2048, Discord 2000 characters


Document = dict[str, Any]
Signed = tuple[str, Document]  # the address, and what it gets


def _feishu_signed(url: str, document: Document, secret: str, now: float) -> Signed:
    """Feishu's signature stands in the document: an HMAC of nothing, whose key has the time in
    whole seconds. It is taken for an hour."""
    at = str(int(now))
    sign = _hmac(f"{at}\n{secret}", "")
    return url, {"timestamp": at, "sign": sign, **document}


def _dingtalk_signed(url: str, document: Document, secret: str, now: float) -> Signed:
    """DingTalk's stands in the address, with the time in milliseconds. It is taken for an hour."""
    at = str(round(now * 1000))
    query = urllib.parse.urlencode({"timestamp": at, "sign": _hmac(secret, f"{at}\n{secret}")})
    return f"{url}{'&' if '?' in url else '?'}{query}", document


def _hmac(key: str, text: str) -> str:
    made = hmac.digest(key.encode(), text.encode(), "sha256")
    return base64.b64encode(made).decode()


def _slack(text: str) -> Document:
    for plain, escaped in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(plain, escaped)
    return {"text": text}


def _feishu(text: str) -> Document:
    return {"msg_type": "text", "content": {"text": _AT.sub("< ", text)}}


def _discord(text: str) -> Document:
    return {"content": text, "allowed_mentions": {"parse": []}}


@dataclass(frozen=True)
class Format:
    """How a text is wrapped, and signed where a secret is set.

    code: the fields of the answer of which the first must be 0. Feishu, DingTalk and WeCom say HTTP
    200 also when they refuse a message. reasons: what their codes mean.
    """

    wrap: Callable[[str], Document]
    code: tuple[str, ...] = ()
    reasons: Mapping[int, str] = field(default_factory=dict)
    sign: Callable[[str, Document, str, float], Signed] | None = None


FORMATS: Mapping[str, Format | None] = {
    "json": None,  # the whole message, with its fields
    "slack": Format(_slack),
    "discord": Format(_discord),
    "feishu": Format(
        _feishu,
        ("code", "StatusCode"),
        {
            19021: "the signature is wrong, or this host's clock by more than an hour",
            19022: "this host is not in the robot's list of addresses",
            19024: "the text holds none of the robot's keywords",
        },
        _feishu_signed,
    ),
    "dingtalk": Format(
        lambda text: {"msgtype": "text", "text": {"content": text}},
        ("errcode",),
        {310000: "the robot's keyword, signature or list of addresses does not fit"},
        _dingtalk_signed,
    ),
    "wecom": Format(
        lambda text: {"msgtype": "text", "text": {"content": text}},
        ("errcode",),
        {93000: "there is no such robot", 45009: "it got too many messages"},
    ),
}


@dataclass(frozen=True)
class Answer:
    """outcome: SENT, what went wrong, or "" where no address is set. offset_s: of this clock
    against the server's, positive where ours is ahead; None where it gave no time."""

    outcome: str
    offset_s: float | None = None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the message, and what the address knows, to somebody else."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class _RefusedError(Exception):
    """The answer says that the message was not taken."""


def post(layout: Layout, message: Mapping[str, Any]) -> Answer:
    """Send `message` ("text" and more) to this host's webhook; it never raises."""
    return _guarded(lambda: _post(_addresses(layout), message))


def beat(layout: Layout) -> Answer:
    """Fetch the heartbeat's address; it never raises."""
    return _guarded(lambda: _fetch(_addresses(layout).get("heartbeat_url"), None, None))


def offset(layout: Layout) -> float | None:
    """As an Answer's, asked of the webhook's server with a HEAD, which sends no message."""
    return _guarded(lambda: _fetch(_addresses(layout).get("url"), None, None, "HEAD")).offset_s


def is_set(layout: Layout) -> bool:
    """Whether a webhook is set."""
    return bool(_guarded_addresses(layout).get("url"))


def longest(layout: Layout) -> int | None:
    """How many bytes of a text arrive, the rest is cut; None where all of it does."""
    chosen = FORMATS.get(str(_guarded_addresses(layout).get("format", "json")))
    return None if chosen is None else _LONGEST_TEXT


def _addresses(layout: Layout) -> dict[str, Any]:
    addresses = load(layout.state(ADDRESSES), None) or {}
    if not isinstance(addresses, dict):
        raise TypeError(ADDRESSES)
    return addresses


def _guarded_addresses(layout: Layout) -> dict[str, Any]:
    try:
        return _addresses(layout)
    except Exception:  # whatever it is, its text may hold the address
        return {}


def _post(addresses: Mapping[str, Any], message: Mapping[str, Any]) -> Answer:
    url, chosen = addresses.get("url"), FORMATS[addresses.get("format", "json")]
    if not url or chosen is None:
        return _fetch(url, json.dumps(message).encode(), chosen)
    document = chosen.wrap(_short(str(message["text"])))
    if chosen.sign and (secret := addresses.get("secret")):
        url, document = chosen.sign(url, document, secret, time.time())
    return _fetch(url, json.dumps(document).encode(), chosen)


def _fetch(url: Any, data: bytes | None, chosen: Format | None, method: str = "") -> Answer:
    if not url:
        return Answer("")
    if not url.startswith(("https://", "http://")):
        return Answer("not sent: no web address")
    headers = {"User-Agent": "macd-host"}
    if data is not None:
        headers["Content-Type"] = "application/json"
    method = method or ("GET" if data is None else "POST")
    request = urllib.request.Request(  # noqa: S310 - see above
        url, data=data, headers=headers, method=method
    )
    with urllib.request.build_opener(_NoRedirect).open(request, timeout=_WITHIN_S) as answer:
        ours = _offset(answer.headers.get("Date"))
        if chosen is not None and chosen.code:
            _check(answer.read(_LONGEST_ANSWER), chosen)
        return Answer(SENT, ours)


def _check(body: bytes, chosen: Format) -> None:
    """Raises _RefusedError unless the body says 0."""
    try:
        document = json.loads(body)
        said = next(document[name] for name in chosen.code if name in document)
    except (ValueError, TypeError, StopIteration, RecursionError):
        raise _RefusedError("the address did not say whether it took the message") from None
    if type(said) is not int or said != 0:
        reason = chosen.reasons.get(said) if type(said) is int else None
        code = untrusted.line(said, 20)
        raise _RefusedError(
            f"the address refused the message with {code}{f': {reason}' if reason else ''}"
        )


def _guarded(send: Callable[[], Answer]) -> Answer:
    try:
        return send()
    except _RefusedError as error:
        return Answer(str(error))
    except urllib.error.HTTPError as error:
        return Answer("the address answered %d" % error.code, _offset(error.headers.get("Date")))
    except urllib.error.URLError as error:
        return Answer(_not_reached(error.reason))
    except Exception as error:  # whatever it is, its text may hold the address
        return Answer("not sent: %s" % type(error).__name__)


def _not_reached(reason: object) -> str:
    """Why, without a word of OpenSSL's that may hold the address."""
    if isinstance(reason, ssl.SSLCertVerificationError):
        wrong = _CERTIFICATES.get(reason.verify_code, "is not trusted on this host")
        return f"the certificate of the address {wrong}"
    if tunnel := _TUNNEL.search(str(reason)):
        wants = ": it wants a login" if tunnel[1] == "407" else ""
        return f"the proxy of this host answered {tunnel[1]}{wants}"
    by_proxy = " (or the proxy)" if urllib.request.getproxies() else ""
    return f"the address{by_proxy} was not reached: {type(reason).__name__}"


def _offset(date: str | None) -> float | None:
    """Of this clock against an HTTP Date (RFC 9110, 6.6.1), which has whole seconds."""
    try:
        return time.time() - parsedate_to_datetime(date or "").timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def _short(text: str) -> str:
    raw = text.encode("utf-8", "replace")
    if len(raw) <= _LONGEST_TEXT:
        return raw.decode("utf-8")
    return raw[:_LONGEST_TEXT].decode("utf-8", "ignore") + " …"
