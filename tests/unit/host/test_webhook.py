"""The one sender: what each kind of webhook gets, what counts as taken, and no address anywhere."""

from __future__ import annotations

import json
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
WRAPPED = {
    "json": MESSAGE,
    "slack": {"text": "macd: x"},
    "discord": {"content": "macd: x"},
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
        ("feishu", 200, b'{"code": 19024, "msg": "Key Words"}', "refused the message with 19024"),
        ("feishu", 200, b'{"StatusCode": 0, "StatusMessage": "success"}', "sent"),
        ("dingtalk", 200, b'{"errcode": 310000, "errmsg": "keywords"}', "with 310000"),
        ("wecom", 200, b'{"errcode": 93000}', "with 93000"),
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
