"""What provision announces is what it does, word for word; and a refusal changes nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from macd.host.deploy import rollback
from macd.host.deploy.provision import provision
from macd.host.failure import HostError
from macd.host.layout import Layout
from macd.host.store import snapshots


def run(
    app: Path, env: dict[str, str], *, dry_run: bool, settings: bytes | None = None
) -> list[dict[str, Any]]:
    files = [{"path": "state/signers", "data": b"us\n", "mode": 0o644}]
    if settings is not None:
        files.append({"path": "service.json", "data": settings, "mode": 0o644})
    answer = _provisioned(app, env, files, dry_run=dry_run)
    changes: list[dict[str, Any]] = answer["changes"]
    return changes


def _provisioned(
    app: Path, env: dict[str, str], files: list[dict[str, Any]], *, dry_run: bool
) -> dict[str, Any]:
    """With neither account nor units: those are tests/local/test_deploy_lab.py and tests/hosts."""
    return provision(
        app=str(app),
        scope="user",
        account="",
        directories=[{"path": p, "mode": 0o755, "owner": ""} for p in ("", "state", "data")],
        files=files,
        flags=env,
        units={},
        enable=[],
        who="tester",
        dry_run=dry_run,
    )


def test_a_dry_run_tells_the_very_list_and_changes_nothing(tmp_path: Path) -> None:
    app = tmp_path / "app"
    flags = {"ML_ENABLE_STACKING": "0"}
    announced = run(app, flags, dry_run=True)
    assert not app.exists()
    assert run(app, flags, dry_run=False) == announced
    assert [one["how"] for one in announced] == ["created"] * 5
    assert run(app, flags, dry_run=False) == []
    (app / "data").chmod(0o700)
    (app / "state/signers").write_text("them\n")
    (app / ".env").chmod(0o644)
    announced = run(app, flags, dry_run=True)
    assert [one["how"] for one in announced] == ["mode 700 -> 755", "changed", "made private"]
    assert run(app, flags, dry_run=False) == announced
    assert run(app, flags, dry_run=True) == []


def test_what_provision_wrote_was_edited_by_nobody(tmp_path: Path) -> None:
    app = tmp_path / "app"
    layout = Layout(str(app))
    run(app, {}, dry_run=False, settings=b'{"a": 1}\n')
    before: dict[str, str | None] = {"service.json": (app / "service.json").read_text()}
    written = rollback.written(layout, None, [])
    assert snapshots.edited(before, written) == []
    assert snapshots.edited({"service.json": '{"a": 2}\n'}, written) == ["service.json"]


def test_a_secret_that_changes_is_named_and_not_shown(tmp_path: Path) -> None:
    app = tmp_path / "app"
    flags = {"API_TOKEN": "old", "PROXY": "http://bob:old@proxy", "MODE": "a", "ML_X": "1"}
    run(app, flags, dry_run=False)
    flags = {"API_TOKEN": "new", "PROXY": "http://bob:new@proxy", "MODE": "b", "NEW_KEY": "new"}
    [change] = run(app, flags, dry_run=True)
    assert change["hidden"] == ["API_TOKEN", "PROXY", "MODE"]
    assert "new" not in change["before"] + change["after"]
    assert "NEW_KEY=" in change["after"] and "MODE=•" in change["after"]


def test_what_is_not_understood_is_refused_before_anything_is_changed(tmp_path: Path) -> None:
    app = tmp_path / "app"
    run(app, {}, dry_run=False)
    (app / "state/signers").unlink()
    for data in (b"ML_ENABLE_STACKING=0\n\0", b"A=\xe9\n", b"LD_AUDIT=/tmp/x.so\n"):
        (app / ".env").write_bytes(data)
        with pytest.raises(HostError, match="can't stay as it is"):
            run(app, {}, dry_run=False)
        assert not (app / "state/signers").exists()


def test_what_systemd_takes_is_kept_byte_for_byte(tmp_path: Path) -> None:
    app = tmp_path / "app"
    run(app, {"ML_ENABLE_STACKING": "0"}, dry_run=False)
    data = (
        b"# caf\xe9\r\nhttps_proxy=http://p:1\r\nexport X=1\nML_X=1\nDB_URL=p://u:hunter2!w@h\nA='1"
    )
    (app / ".env").write_bytes(b"ML_ENABLE_STACKING=1\r\n" + data)
    [change] = run(app, {"ML_X": "2", "ML_ENABLE_STACKING": "0"}, dry_run=True)
    assert "hunter2" not in change["before"] + change["after"]
    run(app, {"ML_X": "2", "ML_ENABLE_STACKING": "0"}, dry_run=False)
    after = b"ML_ENABLE_STACKING=1\r\n" + data.replace(b"ML_X=1", b"ML_X=2")
    assert (app / ".env").read_bytes() == after


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "directory"])
def test_what_is_no_file_where_env_should_be_is_refused_at_once(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    app = tmp_path / "app"
    run(app, {}, dry_run=False)
    (app / ".env").unlink()
    (app / "state/signers").unlink()
    make(app / ".env")
    with pytest.raises(HostError, match="is no file"):
        run(app, {}, dry_run=False)
    assert not (app / "state/signers").exists()
