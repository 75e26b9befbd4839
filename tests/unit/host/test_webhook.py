"""The one sender: what each kind of webhook gets, what counts as taken, and no address anywhere."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest

from macd.host.alerts import webhook
from macd.host.layout import Layout
from tests.support.receiver import Receiver, receiving

TOKEN = "s3cret-token"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as server:
        yield server


def layout_for(tmp_path: Path, receiver: Receiver | None, **more: str) -> Layout:
    (tmp_path / "state").mkdir(exist_ok=True)
    port = receiver.server_port if receiver else 1
    addresses = {"url": f"http://127.0.0.1:{port}/{TOKEN}", **more}
    (tmp_path / "state/notify.json").write_text(json.dumps(addresses))
    return Layout(str(tmp_path))


MESSAGE = {"text": "macd: x", "event": "alerts"}
SECRET = "SECt0p+/="
WRAPPED = {
    "json": MESSAGE,
    "slack": {"text": "macd: x"},
    "discord": {"content": "macd: x", "allowed_mentions": {"parse": []}},
    "feishu": {"msg_type": "text", "content": {"text": "macd: x"}},
    "dingtalk": {"msgtype": "text", "text": {"content": "macd: x"}},
    "wecom": {"msgtype": "text", "text": {"content": "macd: x"}},
}


@pytest.mark.parametrize("name", sorted(webhook.FORMATS))
def test_each_format(tmp_path: Path, receiver: Receiver, name: str) -> None:
    receiver.body = b'{"code": 0, "errcode": 0, "msg": "success"}'
    answer = webhook.post(layout_for(tmp_path, receiver, format=name), MESSAGE)
    assert answer.outcome == "sent"
    assert answer.offset_s is not None and abs(answer.offset_s) < 5
    assert receiver.got == [("POST", f"/{TOKEN}", WRAPPED[name])]


@pytest.mark.parametrize(
    ("name", "code", "body", "outcome"),
    [
        ("feishu", 200, b'{"code": 19024, "msg": "Key Words"}', "19024: the text holds none of"),
        ("feishu", 200, b'{"code": 19021, "msg": "sign match fail"}', "19021: the signature is"),
        ("feishu", 200, b'{"code": 9499, "msg": "Bad Request"}', "the message with 9499"),
        ("feishu", 200, b'{"code": [1], "msg": "Bad Request"}', "the message with [1]"),
        ("feishu", 200, b'{"StatusCode": 0, "StatusMessage": "success"}', "sent"),
        ("dingtalk", 200, b'{"errcode": 310000, "errmsg": "keywords"}', "keyword, signature or"),
        ("dingtalk", 200, b'{"errcode": "0"}', "the message with 0"),
        ("wecom", 200, b'{"errcode": 93000}', "93000: there is no such robot"),
        ("wecom", 200, b'{"errcode": false}', "with False"),
        ("wecom", 200, b"<html>proxy</html>", "did not say whether"),
        ("wecom", 200, b"[" * 100_000, "did not say whether"),
        ("slack", 200, b"ok", "sent"),
        ("discord", 204, b"", "sent"),
        ("json", 404, b"", "the address answered 404"),
        ("json", 302, b"", "the address answered 302"),
        ("telegram", 200, b"", "not sent: KeyError"),
    ],
)  # fmt: skip
def test_what_counts_as_taken(
    tmp_path: Path, receiver: Receiver, name: str, code: int, body: bytes, outcome: str
) -> None:
    receiver.code, receiver.body, receiver.date = code, body, False
    answer = webhook.post(layout_for(tmp_path, receiver, format=name), MESSAGE)
    assert outcome in answer.outcome and answer.offset_s is None  # no Date, no offset
    assert TOKEN not in answer.outcome
    assert "/elsewhere" not in [path for _, path, _ in receiver.got]


# Of openssl: printf TEXT | openssl dgst -sha256 -hmac KEY -binary | base64
def test_feishus_signature_is_in_the_document() -> None:
    sign = webhook.FORMATS["feishu"].sign  # type: ignore[union-attr]
    assert sign is not None
    url, document = sign("https://a/hook/x", {"msg_type": "text"}, "t0psecret", 1599360473.9)
    assert url == "https://a/hook/x"
    assert document == {
        "timestamp": "1599360473",
        "sign": "tUxdfosEzHC/RUqP/zzssUH0qTY39WAP1Fa4bDnBl6U=",
        "msg_type": "text",
    }


def test_dingtalks_signature_is_in_the_address() -> None:
    sign = webhook.FORMATS["dingtalk"].sign  # type: ignore[union-attr]
    assert sign is not None
    url, document = sign("https://a/send?access_token=x", {}, "SECt0p", 1599360473.0)
    signature = "klQ%2Bcif29eEuAj%2BvbHjvO73wRaYFBSRUxQ%2F3Qp4Wzmk%3D"
    assert url == f"https://a/send?access_token=x&timestamp=1599360473000&sign={signature}"
    assert document == {}


def test_signed_messages_are_of_now(tmp_path: Path, receiver: Receiver) -> None:
    receiver.body = b'{"code": 0, "errcode": 0}'
    for name in ("feishu", "dingtalk", "wecom"):
        layout = layout_for(tmp_path, receiver, format=name, secret=SECRET)
        assert webhook.post(layout, MESSAGE).outcome == "sent"
    (_, _, feishu), (_, path, dingtalk), (_, _, wecom) = receiver.got
    assert abs(int(feishu["timestamp"]) - time.time()) < 3600
    assert feishu["sign"] == by_hand(f"{feishu['timestamp']}\n{SECRET}", "")
    query = urllib.parse.parse_qs(urllib.parse.urlsplit(path).query)
    (at,), (sign,) = query["timestamp"], query["sign"]
    assert abs(int(at) / 1000 - time.time()) < 3600
    assert sign == by_hand(SECRET, f"{at}\n{SECRET}")
    assert dingtalk == WRAPPED["dingtalk"] and wecom == WRAPPED["wecom"]


def by_hand(key: str, text: str) -> str:
    made = hmac.new(key.encode(), text.encode(), hashlib.sha256).digest()
    return base64.b64encode(made).decode()


def test_slacks_marks_are_escaped(tmp_path: Path, receiver: Receiver) -> None:
    text = "<!channel> p < .05 & more"
    webhook.post(layout_for(tmp_path, receiver, format="slack"), {"text": text})
    assert receiver.got[0][2] == {"text": "&lt;!channel&gt; p &lt; .05 &amp; more"}


def test_a_services_own_words_call_nobody(tmp_path: Path, receiver: Receiver) -> None:
    receiver.body = b'{"code": 0}'
    text = 'macd: <at user_id="all">x</at> @everyone p <atlas <AT user_id="1"></at>'
    webhook.post(layout_for(tmp_path, receiver, format="feishu"), {"text": text})
    said = receiver.got[0][2]["content"]["text"]
    assert said == 'macd: < at user_id="all">x< /at> @everyone p <atlas < AT user_id="1">< /at>'


def test_long_texts_fit_the_smallest_of_them(tmp_path: Path, receiver: Receiver) -> None:
    receiver.body = b'{"errcode": 0}'
    webhook.post(layout_for(tmp_path, receiver, format="wecom"), {"text": "断" * 2000})
    ((_, _, got),) = receiver.got
    assert 1800 < len(got["text"]["content"].encode()) <= 2048


def test_the_heartbeat_is_a_get(tmp_path: Path, receiver: Receiver) -> None:
    url = f"http://127.0.0.1:{receiver.server_port}/ping"
    layout = layout_for(tmp_path, None, heartbeat_url=url)
    assert webhook.beat(layout).outcome == "sent"
    assert receiver.got == [("GET", "/ping", None)]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"url": 3}', '{"url": "file:///etc/passwd"}'])
def test_addresses_that_are_none(tmp_path: Path, content: str) -> None:
    layout = layout_for(tmp_path, None)
    (tmp_path / "state/notify.json").write_text(content)
    assert webhook.post(layout, MESSAGE).outcome.startswith("not sent") or content == "[]"
    assert webhook.beat(layout).outcome != "sent"
    assert webhook.is_set(layout) == (content.startswith('{"url"'))


def test_nobody_there(tmp_path: Path) -> None:
    outcome = webhook.post(layout_for(tmp_path, None), MESSAGE).outcome
    assert outcome.startswith("the address was not reached") and TOKEN not in outcome
    (tmp_path / "state/notify.json").unlink()
    assert webhook.post(Layout(str(tmp_path)), MESSAGE).outcome == ""
