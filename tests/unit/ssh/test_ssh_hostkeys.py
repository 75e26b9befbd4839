"""known_hosts is read as OpenSSH reads it, and a pinned key survives everything around it."""

from __future__ import annotations

import base64
import subprocess
import threading
from pathlib import Path

import asyncssh
import pytest

from macd.errors import MacdError, UsageError
from macd.ssh.hostkeys import HostKey, KnownHosts, Verdict, pin


def made(kind: str = "ssh-ed25519") -> HostKey:
    key = asyncssh.generate_private_key(kind)
    name, blob = key.export_public_key().decode().split()[:2]
    return HostKey(name, base64.b64decode(blob))


ONE, TWO = made(), made()
OTHER_KIND = made("ecdsa-sha2-nistp256")


def entry(names: str, key: HostKey, marker: str = "") -> str:
    return f"{marker} {names} {key.type} {base64.b64encode(key.blob).decode()} a comment\n".lstrip()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "known_hosts"


def judged(path: Path, text: str, name: str, key: HostKey = ONE) -> Verdict:
    path.write_text(text)
    return KnownHosts.read(path).judge(name, key)


MATCHING = [
    ("box.example", "box.example"),
    ("a,box.example,b", "box.example"),
    ("BOX.Example", "box.example"),
    ("*.example", "box.example"),
    ("b?x.example", "box.example"),
    ("[box.example]:2200", "[box.example]:2200"),
    ("[*.example]:2200", "[box.example]:2200"),
    ("::1", "::1"),
    ("*,!other.example", "box.example"),
]
NOT_MATCHING = [
    ("box.example", "[box.example]:2200"),
    ("[box.example]:2200", "box.example"),
    ("[box.example]:2200", "[box.example]:2201"),
    ("*.example,!box.example", "box.example"),
    ("!box.example,*.example", "box.example"),
    ("!box.example", "box.example"),
    ("ox.example", "box.example"),
    ("[bo]x", "bx"),
    ("|1|broken", "box.example"),
]


@pytest.mark.parametrize(("names", "name"), MATCHING)
def test_names_that_match(path: Path, names: str, name: str) -> None:
    assert judged(path, entry(names, ONE), name) is Verdict.KNOWN
    assert judged(path, entry(names, TWO), name) is Verdict.CHANGED


@pytest.mark.parametrize(("names", "name"), NOT_MATCHING)
def test_names_that_do_not_match(path: Path, names: str, name: str) -> None:
    assert judged(path, entry(names, ONE), name) is Verdict.UNKNOWN


@pytest.mark.parametrize(("names", "name"), MATCHING + NOT_MATCHING)
def test_ssh_keygen_agrees(path: Path, names: str, name: str) -> None:
    path.write_text(entry(names, ONE))
    lookup = subprocess.run(
        ["ssh-keygen", "-F", name, "-f", str(path)], capture_output=True, check=False
    )
    ours = KnownHosts.read(path).judge(name, ONE) is Verdict.KNOWN
    assert ours == (lookup.returncode == 0)


@pytest.mark.parametrize("name", ["box.example", "[box.example]:2200"])
def test_hashed_names(path: Path, name: str) -> None:
    path.write_text(entry(name, ONE))
    subprocess.run(["ssh-keygen", "-H", "-f", str(path)], capture_output=True, check=True)
    assert path.read_text().startswith("|1|")
    known = KnownHosts.read(path)
    assert known.judge(name, ONE) is Verdict.KNOWN
    assert known.judge(name, TWO) is Verdict.CHANGED
    assert known.judge("other", ONE) is Verdict.UNKNOWN


def test_a_key_of_another_kind_is_a_changed_key(path: Path) -> None:
    assert judged(path, entry("box", OTHER_KIND), "box") is Verdict.CHANGED


def test_several_keys_may_be_pinned(path: Path) -> None:
    text = entry("box", OTHER_KIND) + entry("box", TWO) + entry("box", ONE)
    assert judged(path, text, "box") is Verdict.KNOWN
    assert KnownHosts.read(path).pinned("box") == (OTHER_KIND, TWO, ONE)


@pytest.mark.parametrize("names", ["box", "*"])
def test_a_revoked_key_is_refused_even_if_it_is_also_pinned(path: Path, names: str) -> None:
    text = entry("box", ONE) + entry(names, ONE, "@revoked")
    assert judged(path, text, "box") is Verdict.REVOKED
    assert judged(path, text, "box", TWO) is Verdict.CHANGED


def test_an_authority_does_not_vouch_for_a_plain_key(path: Path) -> None:
    assert judged(path, entry("box", ONE, "@cert-authority"), "box") is Verdict.UNKNOWN


@pytest.mark.parametrize(
    "text", ["", "# box\n", "box\n", "box ssh-ed25519\n", "\xff\n", "@revoked"]
)
def test_lines_that_say_nothing(path: Path, text: str) -> None:
    assert judged(path, text, "box") is Verdict.UNKNOWN


def test_a_file_that_is_not_there_holds_no_keys(path: Path) -> None:
    assert KnownHosts.read(path).judge("box", ONE) is Verdict.UNKNOWN


def test_a_file_that_cannot_be_read_is_told(path: Path) -> None:
    path.mkdir()
    with pytest.raises(MacdError, match="can't be read"):
        KnownHosts.read(path)


def test_fingerprints_are_ssh_keygens(path: Path) -> None:
    path.write_text(entry("box", ONE))
    shown = subprocess.run(
        ["ssh-keygen", "-l", "-f", str(path)], capture_output=True, text=True, check=True
    )
    assert ONE.fingerprint == shown.stdout.split()[1]


def test_pinning_replaces_only_that_hosts_key(path: Path) -> None:
    kept = "# mine\n" + entry("other", TWO) + entry("box", OTHER_KIND, "@revoked")
    path.write_text(entry("box,alias", OTHER_KIND) + kept + entry("BOX", TWO) + "rubbish")
    pin(path, "box", ONE)
    text = path.read_text()
    assert kept in text and "rubbish\n" in text
    assert KnownHosts.read(path).pinned("box") == (ONE,)
    assert KnownHosts.read(path).pinned("alias") == (OTHER_KIND,)
    assert judged(path, text, "box") is Verdict.KNOWN


def test_pinning_replaces_hashed_names(path: Path) -> None:
    path.write_text(entry("box", TWO) + entry("other", TWO))
    subprocess.run(["ssh-keygen", "-H", "-f", str(path)], capture_output=True, check=True)
    pin(path, "box", ONE)
    assert KnownHosts.read(path).pinned("box") == (ONE,)
    assert KnownHosts.read(path).pinned("other") == (TWO,)


def test_a_pattern_for_several_hosts_is_left_to_a_person(path: Path) -> None:
    path.write_text(entry("*.example", TWO))
    with pytest.raises(UsageError, match="pattern"):
        pin(path, "box.example", ONE)
    assert path.read_text() == entry("*.example", TWO)


def test_ssh_reads_what_was_pinned(path: Path) -> None:
    pin(path, "[box]:2200", ONE)
    lookup = subprocess.run(
        ["ssh-keygen", "-F", "[box]:2200", "-f", str(path)], capture_output=True, check=False
    )
    assert lookup.returncode == 0


def test_a_link_stays_a_link_and_a_mode_a_mode(path: Path, tmp_path: Path) -> None:
    real = tmp_path / "elsewhere" / "kh"
    real.parent.mkdir()
    real.write_text("")
    real.chmod(0o600)
    path.symlink_to(real)
    pin(path, "box", ONE)
    assert path.is_symlink() and real.stat().st_mode & 0o777 == 0o600
    assert KnownHosts.read(real).pinned("box") == (ONE,)


def test_two_commands_at_once_lose_no_key(path: Path) -> None:
    threads = [
        threading.Thread(target=pin, args=(path, f"box{n}", ONE), daemon=True) for n in range(24)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    known = KnownHosts.read(path)
    assert all(known.pinned(f"box{n}") == (ONE,) for n in range(24))


def test_a_failed_write_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text(entry("box", ONE))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(MacdError, match="can't be written"):
        pin(path, "box", TWO)
    assert path.read_text() == entry("box", ONE)
    assert [each.name for each in path.parent.iterdir()] == [path.name]
