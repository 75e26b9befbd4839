"""The files of a lab: clean environment, quoted paths, keys that stay, a record that is whole."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from macd.errors import MacdError, UsageError
from macd.host.store.signature import GATE_NAMESPACE, RELEASE_NAMESPACE, SignatureError, verify
from macd.lab import Fault, paths, set_fault, status
from macd.lab.state import Record, read_record, record_path, write_record
from macd.release.signing import sign


def create(root: Path) -> dict[str, paths.HostPaths]:
    return paths.create(root, root / "private", "id1")


def test_a_host_sees_nothing_of_the_operators_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MACD_INVENTORY", "production")
    monkeypatch.setenv("SSH_AUTH_SOCK", "/agent")
    seen = create(tmp_path)["prod"].environment()
    assert sorted(seen) == [
        "HOME", "LANG", "LOGNAME", "MACD_LAB_ID", "PATH", "SHELL", "USER", "XDG_RUNTIME_DIR",
    ]  # fmt: skip


def test_keys_are_private_differ_and_stay(tmp_path: Path) -> None:
    first = create(tmp_path)
    keys = [place.host_key for place in first.values()] + [tmp_path / ".lab/keys/operator"]
    assert len({key.read_text() for key in keys}) == 4
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}
    before = [key.read_text() for key in keys]
    create(tmp_path)
    assert [key.read_text() for key in keys] == before


def test_releases_and_gate_reports_have_signers_of_their_own(tmp_path: Path) -> None:
    create(tmp_path)
    lab = tmp_path / ".lab"
    signers = (lab / "allowed_signers").read_text()
    for name, namespace in (("release", RELEASE_NAMESPACE), ("gate", GATE_NAMESPACE)):
        signed = sign(b"words", key=lab / "keys" / name, namespace=namespace)
        accepted = {"allowed_signers": str(lab / "allowed_signers"), "identity": "lab@macd"}
        verify(b"words", signed, namespace=namespace, **accepted)
        other = sign(b"words", key=lab / "keys" / {"release": "gate", "gate": "release"}[name],
                     namespace=namespace)  # fmt: skip
        with pytest.raises(SignatureError):
            verify(b"words", other, namespace=namespace, **accepted)
    create(tmp_path)
    assert (lab / "allowed_signers").read_text() == signers


def test_no_lab_host_reaches_the_machines_own_systemd(tmp_path: Path) -> None:
    places = create(tmp_path)
    for name in ("jump", "h800"):
        for tool in ("systemctl", "systemd-run", "loginctl", "journalctl"):
            program = shutil.which(tool, path=places[name].environment()["PATH"])
            assert program == str(places[name].bin / tool)
            ran = subprocess.run([program, "status"], capture_output=True, text=True, check=False)
            assert ran.returncode == 1
            assert "not been booted with systemd" in ran.stderr


@pytest.mark.parametrize("name", ["with blanks in it", "per%cent", "quote's", "a" * 200])
def test_ssh_reads_the_paths_it_was_written(tmp_path: Path, name: str) -> None:
    root = tmp_path / name
    root.mkdir()
    paths.write_client_files(root, create(root), {"jump": 40001, "prod": 22222})
    shown = subprocess.run(
        ["ssh", "-G", "-F", str(root / ".lab/ssh_config"), "lab-h800"],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    options = dict(line.split(" ", 1) for line in shown)
    assert options["identityfile"].replace("%%", "%") == str(root / ".lab/keys/operator")
    assert str(root / ".lab/known_hosts") in options["userknownhostsfile"].replace("%%", "%")
    assert options["user"] == "quant"
    assert options["proxyjump"] == "lab-jump"
    assert options["forwardagent"] == "no"
    assert options["stricthostkeychecking"] == "true"


def test_a_path_ssh_config_cannot_name_is_refused(tmp_path: Path) -> None:
    root = tmp_path / 'say "hi"'
    root.mkdir()
    with pytest.raises(MacdError, match="can't live in"):
        create(root)


def test_known_hosts_names_each_host_as_it_is_dialled(tmp_path: Path) -> None:
    paths.write_client_files(tmp_path, create(tmp_path), {"jump": 40001, "prod": 22222})
    names = [line.split()[0] for line in (tmp_path / ".lab/known_hosts").open()]
    assert names == ["[127.0.0.1]:40001", "h800", "[127.0.0.1]:22222"]


def test_a_record_comes_back_whole_and_a_broken_one_is_told(tmp_path: Path) -> None:
    (tmp_path / ".lab").mkdir()
    assert read_record(tmp_path) is None
    record = Record("id1", 4, "boot:5", "/tmp/x", {"prod": 22222})
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record
    record_path(tmp_path).write_text('{"id": "id1"')
    with pytest.raises(MacdError, match=r"state\.json can't be read"):
        read_record(tmp_path)


def test_looking_at_no_lab_changes_nothing(tmp_path: Path) -> None:
    assert not status(tmp_path).running
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(MacdError, match="isn't running"):
        set_fault(tmp_path, "prod", Fault())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "wrong",
    [
        Fault(rtt_ms=-1),
        Fault(mbit=0),
        Fault(cut_after=-1),
        Fault(cut_direction="sideways"),
        Fault(cut_on="never"),
    ],
)
def test_a_fault_no_link_can_have_is_a_usage_error(tmp_path: Path, wrong: Fault) -> None:
    with pytest.raises(UsageError, match="no link can do that"):
        set_fault(tmp_path, "prod", wrong)
    with pytest.raises(UsageError, match="no host 'h8000'"):
        set_fault(tmp_path, "h8000", Fault())
