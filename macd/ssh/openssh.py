"""Reach a host by the system's own ssh, for what only OpenSSH can do.

That is ProxyCommand, host certificates, one-time passwords, FIDO keys, Kerberos, KnownHostsCommand
and every key exchange. ssh logs in once and leaves a control socket; each channel is a process of
its own that goes through it, so a password is typed once. The inventory's known_hosts is the only
one that counts, on every hop, and its rules are strict.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from macd.errors import ContactLostError, MacdError, RefusedError, UsageError
from macd.host.durable import one_at_a_time, replace_file
from macd.inventory import Host, Inventory
from macd.inventory.names import split_jump
from macd.ssh.failures import terminal_hint
from macd.ssh.hostkeys import HostKey, KnownHosts
from macd.ssh.refusals import Reason, UnreachableError

PERSISTS_S = 600  # how long the login stays after the last channel
_STDERR_KEPT = 64 << 10
_CHUNK = 1 << 16
_END_S = 5.0
_SSH_FAILED = 255
_SHOWN = 400
_LOGIN = threading.Lock()  # two prompts at once would confuse whoever types
_NO_SESSION = b"Session open refused"
# Of its jump host's words ssh shows none where its login shall stay (sshconnect.c).
_BEHIND_A_JUMP = re.compile(r"UNKNOWN port|kex_exchange_identification|banner exchange")
_MISMATCH = re.compile(r"no matching (cipher|key exchange method|MAC|host key type) found")
_SETTINGS = {
    "cipher": "Ciphers",
    "key exchange method": "KexAlgorithms",
    "MAC": "MACs",
    "host key type": "HostKeyAlgorithms",
}
_REFUSED_EXEC = (b"exec request failed", b"shell request failed", b"Command execution is disabled")
_WANTS_TERMINAL = (b"PTY", b"pty", b"tty", b"terminal")
# What OpenSSH writes (sshconnect.c, readconf.c, packet.c) -> reason, what happened, what to do.
_SAYINGS: tuple[tuple[str, Reason, str, str], ...] = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED|Host key for \S+ has changed",
        "login",
        "shows another host key than the pinned one",
        "somebody may be listening in between. Only where whoever runs it says that the key is "
        "new: invoke host.trust {name}{option}",
    ),
    (
        r"Host key verification failed|"
        r"No \S+ host (key|certificate) is known|REVOKED HOST KEY",
        "login",
        "shows a host key that is not trusted",
        "invoke host.trust {name}{option} shows and pins it; of a jump host that only ssh_config "
        "names: add its key to {known_hosts}",
    ),
    (
        r"Permission denied|Too many authentication failures|No more authentication methods",
        "login",
        "refused the login",
        "see whether ssh gets in: {ssh}. A password or one-time code can be typed only where the "
        "command runs in a terminal",
    ),
    (
        r"Could not resolve hostname|Name or service not known",
        "name",
        "has a name that is not known",
        "correct HostName in the ssh configuration, or ssh: in the inventory",
    ),
    (
        r"Connection refused",
        "refused",
        "refused the connection",
        "correct port: in the inventory, or Port in the ssh configuration",
    ),
    (
        r"Connection timed out|Operation timed out|No route to host|Network is unreachable",
        "timeout",
        "did not answer",
        "the machine is down, a firewall drops the packets, or the address is wrong: {ssh}",
    ),
    (
        r"no matching [a-z ]+ found",
        "algorithms",
        "speaks no algorithm that ssh here does",
        "let its SSH server speak one of ours, or allow one of its own here, in the ssh "
        "configuration of this host: {setting} +NAME",
    ),
    (
        r"administratively prohibited|open failed|stdio forwarding failed",
        "forwarding",
        "can't be reached through its jump host",
        "let the jump host's sshd forward (AllowTcpForwarding yes, PermitOpen), or log in to the "
        "bastion itself with user: ACCOUNT@ASSET if it wants that",
    ),
)


@dataclass(frozen=True)
class _Way:
    """How ssh is called for one host: its configuration, the words that name it, its socket."""

    name: str
    config: Path
    words: tuple[str, ...]
    socket: Path

    def argv(self, *options: str) -> list[str]:
        return ["ssh", "-F", str(self.config), *options, *self.words]


def connect(host: Host, inventory: Inventory) -> Link:
    """A link to `host`; logs in unless an earlier command's login is still there.

    In a terminal ssh asks there for what it needs. Raises UnreachableError, RefusedError for a
    host key that is not trusted, UsageError where ssh is missing or misconfigured.
    """
    way = _way(host, inventory)
    with one_at_a_time(way.socket.with_suffix(".lock"), mode=0o600):
        if not _is_up(way):
            _log_in(way, host, inventory)
    return Link(way, host, inventory)


def endpoint(host: Host, inventory: Inventory) -> tuple[str, str, int, str]:
    """user, hostname, port and the name in known_hosts of `host`, as `ssh -G` has them."""
    settings = _settings(host, inventory)
    name, port = settings.get("hostname", host.ssh), int(settings.get("port", "22"))
    alias = settings.get("hostkeyalias", "none")
    known_as = name.lower() if port == 22 else f"[{name.lower()}]:{port}"
    return settings.get("user", ""), name, port, known_as if alias == "none" else alias


def _settings(host: Host, inventory: Inventory) -> dict[str, str]:
    """What ssh would use, by the names of ssh_config in small letters."""
    shown = _run([*_way(host, inventory).argv("-G")])
    if shown.returncode:
        raise UsageError(
            f"ssh can't resolve {host.ssh}",
            why=_text(shown.stderr),
            hint=f"correct the ssh configuration; see: ssh -G {host.ssh}",
        )
    pairs = (line.partition(" ") for line in _text(shown.stdout, None).splitlines())
    return {key.lower(): value for key, _, value in pairs}


def fetch_host_keys(host: Host, inventory: Inventory) -> list[HostKey]:
    """The keys that `host` shows, without logging in to it; its jump hosts are logged in to.

    Raises as `connect` does.
    """
    way = _way(host, inventory)
    known_as = endpoint(host, inventory)[3]
    with tempfile.TemporaryDirectory() as directory:
        seen = Path(directory, "known_hosts")
        options = [f"UserKnownHostsFile={seen}", "StrictHostKeyChecking=accept-new"]
        options += ["PreferredAuthentications=none", "BatchMode=yes", "ControlPath=none"]
        options += ["HashKnownHosts=no", "KnownHostsCommand=none"]
        done = _run(way.argv(*_options(options), "-T"))
        keys = KnownHosts.read(seen).pinned(known_as)
        if not keys:
            raise _explained(host, inventory, done.stderr)
        return list(keys)


def jumps_of(host: Host, inventory: Inventory) -> list[Host]:
    """The hosts on the way whose keys must be known first, nearest first; other ones ssh names.

    Raises UsageError for a jump that is none.
    """
    hosts: list[Host] = []
    chain, _ = _chain(host, inventory, ())
    for number, entry in enumerate(chain):
        named = [each for each in inventory.hosts.values() if each.ssh == entry]
        parts = split_jump(entry)
        if named:
            hosts.append(named[0].model_copy(update={"jump": tuple(chain[:number])}))
        elif parts is not None:
            fields = {"name": parts[1], "ssh": parts[1], "user": parts[0], "port": parts[2]}
            hosts.append(host.model_copy(update={**fields, "jump": tuple(chain[:number])}))
    return hosts


class Link:
    """A live login to a host; see macd/ssh/session.py for what it offers."""

    def __init__(self, way: _Way, host: Host, inventory: Inventory) -> None:
        self.name = host.name
        self._way = way
        self._host = host
        self._inventory = inventory
        self._channels: list[Channel] = []

    @property
    def user(self) -> str:
        """The account that is logged in to."""
        return endpoint(self._host, self._inventory)[0]

    def open_channel(self, command: str, *, terminal: bool = False) -> Channel:
        """Start `command` by the login shell of the host, and return its streams.

        terminal: in a terminal, where "" is the login shell itself.
        """
        options = [f"ControlPath={_escaped(self._way.socket)}", "ControlMaster=no"]
        options += [
            "BatchMode=yes",
            f"RequestTTY={'force' if terminal else 'no'}",
            "EscapeChar=none",
        ]
        process = subprocess.Popen(
            [*self._way.argv(*_options(options)), *([command] if command else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # a Ctrl-C that lets hosts end must not end this for them
        )
        channel = Channel(self, process)
        self._channels.append(channel)
        return channel

    def lost(self, stderr: bytes, *, silent: bool) -> MacdError:
        """The error for a channel that ssh itself ended, with ssh's words.

        silent: the command wrote nothing. Where the login is still there too, it never ran: the
        refusal was sent to the process that holds the login.
        """
        if _NO_SESSION in stderr:
            return MacdError(
                f"{self.name} opens no session",
                why=_text(stderr),
                live="nothing was done there",
                hint="its sshd allows no more sessions on one login (MaxSessions): try again, or "
                "have it raised",
            )
        refused = any(words in stderr for words in _REFUSED_EXEC)
        if refused or (silent and not stderr and _is_up(self._way)):
            return _no_exec(self.name, self._host, stderr)
        why = _text(stderr) or "ssh ended without a word"
        return ContactLostError(
            f"contact with {self.name} was lost",
            why=why,
            live="what the host was doing may or may not have been completed",
            hint="invoke status shows how it ended; the command can be repeated",
        )

    def close(self) -> None:
        """End its channels. The login stays for a while, so that nobody types a code again."""
        for channel in self._channels:
            channel.close()

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Channel:
    """A Channel (see macd/ssh/session.py) to a command on the host: the pipes of an ssh process."""

    def __init__(self, link: Link, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin and process.stdout and process.stderr  # noqa: S101
        self._link = link
        self._process = process
        self._stdin, self._stdout, self._stderr = process.stdin, process.stdout, process.stderr
        self._errors = bytearray()
        self._came = False  # anything on stdout
        self._closing = threading.Lock()
        self._reader = threading.Thread(target=self._collect, name="ssh stderr", daemon=True)
        self._reader.start()

    def send(self, data: bytes) -> None:
        """Hand over all of `data`. Raises ContactLostError."""
        view = memoryview(data)
        try:
            while view:
                view = view[self._stdin.write(view[:_CHUNK]) :]
        except (OSError, ValueError) as error:  # ValueError: it was closed here
            raise self._ended() from error

    def recv(self, limit: int) -> bytes:
        """Between 1 and `limit` bytes of stdout; b"" once it is closed. Raises ContactLostError."""
        try:
            data = os.read(self._stdout.fileno(), limit)
        except (OSError, ValueError):
            data = b""
        if not data:
            status = self._status(_END_S)
            self._reader.join(_END_S)  # a cause is read from all of stderr, not from what came yet
            if status == _SSH_FAILED:
                raise self._ended()
        self._came = self._came or bool(data)
        return data

    def stderr(self) -> bytes:
        """The last 64 KiB of what has arrived on stderr; never waits, takes nothing away."""
        return bytes(self._errors)

    def exit_status(self) -> int | None:
        """The command's status, None while it runs or when ssh itself failed."""
        status = self._process.poll()
        return None if status in (None, _SSH_FAILED) else status

    def shutdown_write(self) -> None:
        """Close the command's stdin. Never raises."""
        with contextlib.suppress(OSError, ValueError):
            self._stdin.close()

    def close(self) -> None:
        """End it: sshd then hangs up on the command. Never raises, may be repeated."""
        with self._closing:
            self.shutdown_write()
            if self._status(0.2) is None:
                self._process.terminate()
            if self._status(_END_S) is None:
                self._process.kill()
                self._process.wait()
            self._reader.join(_END_S)

    def _status(self, seconds: float) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(seconds)
        return None

    def _ended(self) -> MacdError:
        self._status(_END_S)
        self._reader.join(_END_S)
        return self._link.lost(self.stderr(), silent=not self._came)

    def _collect(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while chunk := os.read(self._stderr.fileno(), _CHUNK):
                self._errors += chunk
                del self._errors[:-_STDERR_KEPT]


def _way(host: Host, inventory: Inventory) -> _Way:
    directory = _control_directory()
    jumps, blocks = _jumps(host, inventory)
    text = _configuration(inventory, blocks)
    words = list(jumps)
    words += ["-l", host.user] if host.user else []
    words += ["-p", str(host.port)] if host.port else []
    words += ["-i", str(host.identity), "-o", "IdentitiesOnly=yes"] if host.identity else []
    decided = "\0".join([text, *words, host.ssh])
    mark = hashlib.sha256(decided.encode("utf-8", "surrogateescape")).hexdigest()[:20]
    config = directory / f"{mark}.conf"
    if not config.is_file() or config.read_text("utf-8", "surrogateescape") != text:
        replace_file(config, text.encode("utf-8", "surrogateescape"), mode=0o600)
    return _Way(host.name, config, (*words, "--", host.ssh), directory / mark)


def _configuration(inventory: Inventory, blocks: Sequence[str]) -> str:
    """What ssh reads: ours first, for the first value of a setting counts, also on jump hosts."""
    link = inventory.link
    ours = {
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": _quoted(str(inventory.known_hosts).replace("%", "%%")),
        "GlobalKnownHostsFile": "none",
        "UpdateHostKeys": "no",
        "ConnectTimeout": f"{max(1, round(link.connect_s))}",
        "ServerAliveInterval": f"{max(1, round(link.keepalive_s))}",
        "ServerAliveCountMax": f"{max(1, round(link.dead_after_s / link.keepalive_s))}",
        "ForwardAgent": "no",
        "ForwardX11": "no",
        "ClearAllForwardings": "yes",
        "PermitLocalCommand": "no",
        "RemoteCommand": "none",
    }
    named = inventory.ssh_config
    own = [named] if named else [Path("~/.ssh/config").expanduser(), Path("/etc/ssh/ssh_config")]
    lines = [*blocks, "Host *", *(f"  {key} {value}" for key, value in ours.items())]
    lines += [f"Include {_quoted(str(path))}" for path in own if path.is_file()]
    if named and not named.is_file():
        raise UsageError(
            f"{named} does not exist",
            why=f"inventory {inventory.name} reads its ssh aliases from there (key ssh_config)",
            hint="correct ssh_config",
        )
    return "\n".join(lines) + "\n"


def _jumps(host: Host, inventory: Inventory) -> tuple[list[str], list[str]]:
    """The words that say through whom ssh goes, and blocks of ssh_config for hosts of ours there.

    Without a `jump` in the inventory, ssh_config alone decides.
    """
    if host.jump is None:
        return [], []
    chain, blocks = _chain(host, inventory, ())
    if not chain:
        return ["-o", "ProxyJump=none", "-o", "ProxyCommand=none"], []
    return ["-J", ",".join(chain)], blocks


def _chain(
    host: Host, inventory: Inventory, passed: tuple[str, ...]
) -> tuple[list[str], list[str]]:
    chain: list[str] = []
    blocks: list[str] = []
    for number, entry in enumerate(host.jump or ()):
        named = inventory.hosts.get(entry)
        if named is None:
            chain.append(entry)
            if split_jump(entry) is None:
                raise UsageError(f"{entry!r} is no jump host", hint="write [user@]host[:port]")
            continue
        if named.name in passed:
            raise UsageError(f"the way to {host.name} is a loop", why=f"it passes {named.name}")
        if number == 0 and named.jump:
            before, theirs = _chain(named, inventory, (*passed, host.name))
            chain, blocks = [*before, *chain], [*theirs, *blocks]
        chain.append(f"[{named.ssh}]" if ":" in named.ssh else named.ssh)
        blocks.append(_block(named))
    return chain, blocks


def _block(host: Host) -> str:
    """What the inventory says of a jump host, before what ssh_config says."""
    lines = [f"Host {host.ssh}"]
    lines += [f"  User {_quoted(host.user)}"] if host.user else []
    lines += [f"  Port {host.port}"] if host.port else []
    if host.identity:
        escaped = str(host.identity).replace("%", "%%")
        lines += [f"  IdentityFile {_quoted(escaped)}", "  IdentitiesOnly yes"]
    return "\n".join(lines)


def _is_up(way: _Way) -> bool:
    if not way.socket.exists():
        return False
    return (
        _run(
            way.argv(*_options((f"ControlPath={_escaped(way.socket)}",)), "-O", "check")
        ).returncode
        == 0
    )


def _log_in(way: _Way, host: Host, inventory: Inventory) -> None:
    """Start ssh's master process; it goes to the background once it is logged in."""
    with contextlib.suppress(FileNotFoundError):
        way.socket.unlink()  # of a master that is gone
    asks = sys.stdin is not None and sys.stdin.isatty()
    options = [f"ControlPath={_escaped(way.socket)}", "ControlMaster=yes"]
    options += [f"ControlPersist={PERSISTS_S}", f"BatchMode={'no' if asks else 'yes'}"]
    argv = way.argv(*_options(options), "-T", "-N", "-f")
    limit = None if asks else inventory.link.connect_s + inventory.link.login_s + 30
    # A file and not a pipe, which the process in the background would keep open.
    with tempfile.TemporaryFile() as said, _LOGIN:
        try:
            done = subprocess.run(
                argv,
                stdin=None if asks else subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=None if asks else said,  # a person reads there what to type
                timeout=limit,
                check=False,
                start_new_session=not asks,
            )
        except FileNotFoundError as error:
            raise _no_ssh() from error
        except subprocess.TimeoutExpired as error:
            raise _explained(host, inventory, b"Connection timed out") from error
        if done.returncode:
            said.seek(0)
            text = said.read()
            if _BEHIND_A_JUMP.search(_text(text, None)):
                text = _said_on_the_way(way) or text
            raise _explained(host, inventory, text)


def _said_on_the_way(way: _Way) -> bytes:
    """What ssh and its jump hosts say of an attempt that ends before the login; b"" for nothing."""
    options = ["ControlPath=none", "BatchMode=yes", "PreferredAuthentications=none"]
    return _run(way.argv(*_options(options), "-T")).stderr


def _explained(host: Host, inventory: Inventory, stderr: bytes) -> MacdError:
    text, setting = _text(stderr), ""
    if mismatch := _MISMATCH.search(text):
        setting = _SETTINGS[mismatch[1]]
        ours = _settings(host, inventory).get(setting.lower(), "")
        text += f"\nssh here offers: {ours.replace(',', ', ')}"
    option = "" if inventory.name == "lab" else f" --inventory {inventory.name}"
    ssh = f"ssh -v {host.ssh}"
    for pattern, reason, what, hint in _SAYINGS:
        if re.search(pattern, text, re.IGNORECASE):
            words = {"name": host.name, "option": option, "ssh": ssh, "setting": setting}
            made = hint.format(**words, known_hosts=inventory.known_hosts)
            who = _who(text, host, inventory) or host.name
            if "host key" in what:
                return RefusedError(
                    f"{who} {what}", why=text, live="nothing was done there", hint=made
                )
            return UnreachableError(
                f"{who} {what}", hop=host.name, reason=reason, why=text, hint=made
            )
    return UnreachableError(
        f"ssh did not log in to {host.name}",
        hop=host.name,
        reason="lost",
        why=text or "ssh told it above",
        hint=f"see how far ssh gets: {ssh}",
    )


def _who(text: str, host: Host, inventory: Inventory) -> str:
    """The jump host that ssh could not connect to; "" where it was the host, or where none says."""
    tried = re.search(r"connect to host (\S+) port ([0-9]+)", text)
    if not tried:
        return ""
    _, name, port, _ = endpoint(host, inventory)
    return "" if (name, str(port)) == tried.groups() else f"jump host {tried[1]}:{tried[2]}"


def _no_exec(name: str, host: Host, stderr: bytes) -> MacdError:
    terminal = any(word in stderr for word in _WANTS_TERMINAL)
    why = "it gives a terminal and no plain command" if terminal else "it denied the exec request"
    return MacdError(
        f"{name} refuses to run commands",
        why=f"{why}: {_text(stderr)}" if stderr else why,
        hint=f"{terminal_hint(name)}. One that gives a menu must allow exec for this account; see "
        f"what this says: ssh {host.ssh} true",
    )


def _no_ssh() -> UsageError:
    return UsageError(
        "OpenSSH's ssh is not installed here",
        why="a host of the inventory says transport: openssh",
        hint="apt-get install openssh-client",
    )


def _control_directory() -> Path:
    """Where sockets are: a short path, for a socket's address is short, that is ours alone."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    user = os.geteuid()
    base = Path(runtime) / "macd-ssh" if runtime else Path(tempfile.gettempdir()) / f"macd-{user}"
    if len(str(base)) > 60 or " " in str(base):
        base = Path(f"/tmp/macd-{user}")  # noqa: S108 - checked below
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = base.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != user or status.st_mode & 0o077:
        raise MacdError(
            f"{base} is not ours alone",
            why="whoever can write there could take over the connections to the hosts",
            live="nothing was done",
            hint=f"look who made it, remove it, or set XDG_RUNTIME_DIR: ls -ld {base}",
        )
    return base


def _options(settings: Sequence[str]) -> list[str]:
    return [word for setting in settings for word in ("-o", setting)]


def _escaped(path: Path) -> str:
    return str(path).replace("%", "%%")


def _quoted(text: str) -> str:
    """As one word of ssh_config. Raises UsageError for what has no form there."""
    if not text.isprintable():
        raise UsageError(f"{text!r} can't be written into ssh's configuration")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _run(argv: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise _no_ssh() from error
    except subprocess.TimeoutExpired as error:
        raise UsageError("ssh did not end within 60 s", why=" ".join(argv[:8])) from error


def _text(raw: bytes, limit: int | None = _SHOWN) -> str:
    """ssh's words, harmless to a terminal; the last ones, where they are many."""
    text = raw.decode("utf-8", "replace").replace("\r\n", "\n").strip()
    shown = "".join(
        c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text
    )
    return shown if limit is None else shown[-limit:]
