"""A flag in a drop-in of the unit: read as systemd reads it; only its own assignment changes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macd.host import durable
from macd.host.failure import HostError
from macd.host.flag import dropin, flag_file
from macd.host.flag.dropin import rewritten, values_of
from macd.host.flag.flag_file import FLAG, LIVE, SHADOW, Switch
from macd.host.layout import Layout
from macd.host.own import Flag
from macd.host.systemd.supervisor import Process, Supervisor

NAME = "ML_ON"
HEAD = b"[Service]\n"


@pytest.mark.parametrize(
    ("text", "values", "after"),
    [
        (b"Environment=ML_ON=1\n", ["1"], b"Environment=ML_ON=0\n"),
        (b"Environment=A=1 ML_ON=1 B=2\n", ["1"], b"Environment=A=1 ML_ON=0 B=2\n"),
        (b'Environment="A=b c" "ML_ON=1"\n', ["1"], b'Environment="A=b c" ML_ON=0\n'),
        (b"Environment=ML_ON='1' B=\"ML_ON=1\"\n", ["1"], b'Environment=ML_ON=0 B="ML_ON=1"\n'),
        (b'Environment=ML_ON="o\\x6e"\n', ["on"], b"Environment=ML_ON=0\n"),
        (b"  Environment = ML_ON=1\r\n", ["1"], b"  Environment = ML_ON=0\r\n"),
        (b"Environment=A=1 \\\n# c\n  ML_ON=1\n", ["1"], b"Environment=A=1 \\\n# c\n  ML_ON=0\n"),
        (b"Environment=ML_ON=1\nEnvironment=ML_ON=1\n", ["1", "1"], None),
        (b"Environment=ML_ON=1 # no comment\n", ["1"], b"Environment=ML_ON=0 # no comment\n"),
    ],
)
def test_only_the_assignment_of_the_flag_changes(
    text: bytes, values: list[str], after: bytes | None
) -> None:
    assert values_of(HEAD + text, NAME) == values
    assert rewritten(HEAD + text, NAME, "0") == HEAD + (after or text.replace(b"=1", b"=0"))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"Environment=ML_ON=1\n",  # outside of a section
        b"[Unit]\nEnvironment=ML_ON=1\n",
        b"[Service]\n#Environment=ML_ON=1\n",
        b"[Service]\nEnvironment=ML_ON=1\nEnvironment=\n",  # taken back
        b'[Service]\nEnvironment="ML_ON=1\n',  # a quote that nobody closed
        b"[Service]\nEnvironment=ML_ON2=1 XML_ON=1\n",
        b"[Service]\nExecStart=/bin/x \\",  # the last line goes on
        b"[Service]\nExecStart=/bin/x \\\n",
        b"\xff\xfe\0[Service]",
    ],
)
def test_where_nothing_sets_it_a_line_is_added(data: bytes) -> None:
    assert values_of(data, NAME) == []
    after = rewritten(data, NAME, "0")
    assert after.endswith(b"[Service]\nEnvironment=ML_ON=0\n")
    assert values_of(after, NAME) == ["0"]


OTHER = st.lists(
    st.sampled_from(
        [b"ExecStart=/bin/a b", b"Environment=A=1 'B=x y'", b"# c", b"", b"[Service]", b"X=\\"]
    ),
    max_size=6,
)


@given(OTHER, OTHER, st.sampled_from([b"\n", b"\r\n"]))
def test_every_other_byte_stays(before: list[bytes], after: list[bytes], end: bytes) -> None:
    first, last = (b"".join(line + end for line in lines) for lines in (before, after))
    head = first + end + b"[Service]" + end + b"Environment=C=3 "
    data = head + b"ML_ON=1" + b" D=4" + end + last
    assert rewritten(data, NAME, "0") == head + b"ML_ON=0" + b" D=4" + end + last


@given(
    st.binary(max_size=200) | st.lists(st.sampled_from([
        b"[Service]\n", b"Environment=", b"ML_ON=1", b" ", b'"', b"'", b"\\", b"\n", b"\r", b"\\x3",
        b"#", b"\0", b"%", b"=",
    ]), max_size=40).map(b"".join),
    st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=8),
)  # fmt: skip
def test_any_file_ends_with_the_value_that_was_asked_for(data: bytes, value: str) -> None:
    after = rewritten(data, NAME, value)
    assert values_of(after, NAME)[-1:] == [value]
    assert rewritten(after, NAME, value) == after
    if NAME.encode() not in data and b"\\" not in data:
        assert after.startswith(data)


class Systemd(Supervisor):
    """Its units lie in a directory of the test; what it says of a variable is what they set."""

    top = ""
    reloads = 0

    def _call(self, *words: str, check: bool = True) -> str:
        if words[0] == "daemon-reload":
            type(self).reloads += 1
            return ""
        data = b"".join(path.read_bytes() for path in sorted(Path(self.top).rglob("*.conf")))
        return "".join(f"Environment=ML_ON={value}\n" for value in values_of(data, NAME)[-1:])

    @property
    def unit_directory(self) -> str:
        return self.top

    def dropins(self, units: object) -> dict[str, list[dict[str, object]]]:
        paths = sorted(Path(self.top).glob("u.service.d/*.conf"))
        return {"u.service": [{"path": str(path), "sets": []} for path in paths]}


@pytest.fixture
def switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Switch:
    (tmp_path / "app").mkdir()
    monkeypatch.setattr(Systemd, "top", str(tmp_path / "units"))
    monkeypatch.setattr(Systemd, "reloads", 0)
    layout = Layout(str(tmp_path / "app"))
    return Switch(layout, Flag(NAME, "yes", "no", "dropin"), Systemd("system"), "u.service")


def dropins(switch: Switch) -> dict[str, bytes]:
    top = Path(switch.supervisor.unit_directory)
    return {path.name: path.read_bytes() for path in sorted(top.rglob("*.conf"))}


def test_where_no_drop_in_sets_it_one_is_made(switch: Switch) -> None:
    assert switch.upcoming == SHADOW
    switch.write(LIVE)
    assert dropins(switch) == {dropin.NAME: dropin.NEW + b"[Service]\nEnvironment=ML_ON=yes\n"}
    assert switch.upcoming == LIVE
    assert type(switch.supervisor).reloads == 1  # type: ignore[attr-defined]


def test_the_drop_in_that_sets_it_today_is_rewritten(switch: Switch) -> None:
    top = Path(switch.supervisor.unit_directory) / "u.service.d"
    top.mkdir(parents=True)
    (top / "a.conf").write_bytes(b"[Service]\nNice=5\n")
    (top / "override.conf").write_bytes(b'[Service]\r\nEnvironment="X=a b" ML_ON=yes\r\n')
    (top / "override.conf").chmod(0o640)
    switch.write(SHADOW)
    assert dropins(switch) == {
        "a.conf": b"[Service]\nNice=5\n",
        "override.conf": b'[Service]\r\nEnvironment="X=a b" ML_ON=no\r\n',
    }
    assert (top / "override.conf").stat().st_mode & 0o777 == 0o640
    assert switch.upcoming == SHADOW


def test_an_env_that_sets_it_as_well_is_set_too_for_it_wins(switch: Switch) -> None:
    env = Path(switch.layout.env)
    env.write_bytes(b"A=1\r\nML_ON=no\r\n")
    switch.write(LIVE)
    assert env.read_bytes() == b"A=1\r\nML_ON=yes\r\n"
    assert values_of(dropins(switch)[dropin.NAME], NAME) == ["yes"]
    assert switch.upcoming == LIVE
    env.write_bytes(b"A=1\n")
    switch.write(SHADOW)
    assert env.read_bytes() == b"A=1\n"


def test_a_full_disk_takes_the_flag_in_its_own_place(
    switch: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    switch = Switch(switch.layout, Flag(NAME, "1", "0", "dropin"), switch.supervisor, switch.unit)
    switch.write(LIVE)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(durable, "replace_file", full)
    switch.write(SHADOW)
    assert values_of(dropins(switch)[dropin.NAME], NAME) == ["0"]
    with pytest.raises(OSError, match="full"):
        switch.write(LIVE)


PROCESS = Process("active", "running", os.getpid(), "i", 0, "success", "enabled", "loaded")


@pytest.mark.parametrize(
    ("environ", "running", "shadow"),
    [
        ("ML_ON=yes", {FLAG: LIVE}, False),
        ("ML_ON=no", {FLAG: SHADOW}, True),
        ("ML_ON=1", {FLAG: "?"}, False),
        ("ML_ENABLE_STACKING=0\0ML_STACKING_WEIGHT=25", {}, False),  # not told at all
    ],
)
def test_a_process_runs_with_what_the_kernel_says(
    switch: Switch, tmp_path: Path, environ: str, running: dict[str, str], shadow: bool
) -> None:
    place = tmp_path / str(PROCESS.pid)
    place.mkdir()
    (place / "environ").write_text(environ)
    said = flag_file.of_process(PROCESS, "", str(tmp_path), switch.flag)
    assert said == running
    assert switch.is_shadow(said) is shadow


def test_the_flag_of_the_same_name_is_still_the_own_applications(switch: Switch) -> None:
    same = Flag(FLAG, "1", "0", "env")
    assert same != flag_file.BUILT_IN
    assert not Switch(switch.layout, same, switch.supervisor, switch.unit).has_weights
    weighed = {FLAG: "1", flag_file.WEIGHT: "25"}
    assert flag_file.weight_of(flag_file.meant(same, weighed)) == flag_file.FULL


def test_without_a_flag_there_is_nothing_to_switch(tmp_path: Path) -> None:
    layout = Layout(str(tmp_path))
    own = '{"own": {"name": "theirs", "units": [["u.service", {}]], "writes": []}}'
    Path(layout.service_settings).write_text(own)
    assert flag_file.flag_of(layout) is None
    with pytest.raises(HostError, match="has no flag") as error:
        flag_file.switch_of(layout, {"unit": "u.service", "scope": "system"})
    assert error.value.kind == "refused"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"own": {"name": 1}}', None])
def test_a_torn_service_json_does_not_keep_the_built_in_flag_on(
    tmp_path: Path, text: str | None
) -> None:
    layout = Layout(str(tmp_path))
    if text is not None:
        Path(layout.service_settings).write_text(text)
    assert flag_file.flag_of(layout) == flag_file.BUILT_IN
