"""Whose release a host takes: its own word and its list of revoked keys, not the client's."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from macd.host.failure import HostError
from macd.host.layout import Layout
from macd.host.store import releases
from tests.support.signed_files import IDENTITY, Made, make_key, make_release


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return make_release(tmp_path)


def host(made: Made, top: Path, **more: Any) -> Layout:
    """A host that takes what `made` is, but for `more`."""
    layout = Layout(str(top / "app"))
    state = Path(layout.state())
    state.mkdir(parents=True)
    (state / "allowed_signers").write_bytes(made.allowed_signers.read_bytes())
    own = {"app": made.manifest.app, "env": made.manifest.env, "identity": IDENTITY, **more}
    (state / "accepts.json").write_text(json.dumps(own))
    return layout


def accept(layout: Layout, made: Made) -> str:
    claimed = {"app": made.manifest.app, "env": made.manifest.env, "identity": IDENTITY}
    return releases.accept(
        layout, made.raw, made.signature, claimed, now=made.manifest.created.timestamp()
    )[0]


def krl(top: Path, public: Path) -> bytes:
    subprocess.run(["ssh-keygen", "-q", "-k", "-f", top / "krl", public], check=True)
    return (top / "krl").read_bytes()


def refusal(layout: Layout, made: Made) -> str:
    with pytest.raises(HostError) as caught:
        accept(layout, made)
    assert caught.value.kind == "refused"
    return f"{caught.value}: {caught.value.why} do: {caught.value.hint}"


def test_a_release_signed_by_a_revoked_key_is_refused(made: Made, tmp_path: Path) -> None:
    listed = krl(tmp_path, made.key.with_suffix(".pub"))
    layout = host(made, tmp_path, revoked=hashlib.sha256(listed).hexdigest())
    Path(layout.state("revoked.krl")).write_bytes(listed)
    message = refusal(layout, made)
    assert "the release's signature was refused: the key that signed it is revoked" in message
    assert "do: invoke release makes one again, signed with a key that is not revoked" in message
    other = krl(tmp_path, make_key(tmp_path, "other").with_suffix(".pub"))
    Path(layout.state("revoked.krl")).write_bytes(other)
    assert "revoked.krl is not as provisioned" in refusal(layout, made)
    Path(layout.state("revoked.krl")).unlink()
    assert "the list of revoked keys can't be read" in refusal(layout, made)


def test_a_list_that_revokes_others_and_no_list_let_it_in(made: Made, tmp_path: Path) -> None:
    listed = krl(tmp_path, make_key(tmp_path, "other").with_suffix(".pub"))
    layout = host(made, tmp_path, revoked=hashlib.sha256(listed).hexdigest())
    Path(layout.state("revoked.krl")).write_bytes(listed)
    assert accept(layout, made)
    (tmp_path / "without").mkdir()
    assert accept(host(made, tmp_path / "without"), made)


@pytest.mark.parametrize("name", ["app", "env", "identity"])
def test_the_hosts_own_word_counts_whatever_the_inventory_claims(
    made: Made, tmp_path: Path, name: str
) -> None:
    message = refusal(host(made, tmp_path, **{name: "another"}), made)
    assert "this host is not what the inventory says" in message
    assert f"its {name} is another" in message


def test_a_host_that_was_never_told_takes_nothing(made: Made, tmp_path: Path) -> None:
    layout = host(made, tmp_path)
    Path(layout.state("accepts.json")).unlink()
    assert "do: invoke provision" in refusal(layout, made)
