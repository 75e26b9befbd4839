"""Which protection needs namespaces, and what systemd's own words say about a host without them.

The words were recorded from systemd 252; tests/hosts/test_container_hosts.py has it say them.
"""

from __future__ import annotations

import pytest

from macd.host.flag import guard_config
from macd.host.layout import Layout
from macd.host.systemd import namespaces, selinux, starting
from macd.host.systemd.sandbox import properties, writing

HARDENED = """[Service]
ExecStart=/bin/x
User=macd
ReadWritePaths=/opt/app/data/live
ProtectSystem=strict
PrivateTmp=yes
SystemCallFilter=@system-service
MemoryMax=500M
"""
SAYS = """t1.service: Failed to set up mount namespacing: Operation not permitted
t1.service: Failed at step NAMESPACE spawning /bin/sh: Operation not permitted
t1.service: Main process exited, code=exited, status=226/NAMESPACE
t1.service: Failed with result 'exit-code'.""".splitlines()


def test_a_container_keeps_all_that_needs_none() -> None:
    text = namespaces.without(HARDENED)
    assert (
        text == "[Service]\nExecStart=/bin/x\nUser=macd\n" + HARDENED[HARDENED.index("SystemC") :]
    )
    assert namespaces.wants(HARDENED) and namespaces.wants(None)
    assert not namespaces.wants(text)
    # There a build may write without being allowed to, so systemd isn't asked to allow it.
    assert writing("/opt/app/x", properties(text), 9) == [("LimitFSIZE", "9")]
    assert ("ReadWritePaths", '"/opt/app/x"') in writing("/opt/app/x", properties(HARDENED), 9)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("226", "systemd can start no such process here (status 226/NAMESPACE)"),
        ("217", "systemd can start no such process here (status 217/USER)"),
        ("3", "systemd can make no mount namespace here, and starts units without one"),
        ("203", ""),
        ("", ""),  # systemd-run itself failed: nothing is known
    ],
)
def test_what_a_trial_says(status: str, said: str) -> None:
    assert namespaces._meaning(status) == said


def test_a_guards_unit_has_what_service_hardening_says() -> None:
    service = {"unit": "macd-analysis.service", "scope": "system", "hardening": "container"}
    watch = {"service": service, "every_s": 7200.0}
    layout = Layout("/opt/app")
    text = guard_config._units(layout, watch)["macd-analysis-guard.service"]
    assert not namespaces.wants(text) and "SystemCallFilter=@system-service" in text
    full = guard_config._units(layout, {**watch, "service": {**service, "hardening": "full"}})
    assert namespaces.wants(full["macd-analysis-guard.service"])


@pytest.mark.parametrize(
    ("enforce", "label", "is_refused"),
    [
        ("1\n", "unconfined_u:object_r:user_home_t:s0\0", True),
        ("1", "system_u:object_r:var_t:s0", True),
        ("1", "system_u:object_r:bin_t:s0\0", False),
        ("1", "system_u:object_r:usr_t:s0", False),
        ("0", "unconfined_u:object_r:user_home_t:s0", False),  # permissive
        ("", "unconfined_u:object_r:user_home_t:s0", False),  # no SELinux
        ("1", "", False),
    ],
)
def test_selinux_is_told_by_the_labels(enforce: str, label: str, is_refused: bool) -> None:
    said = selinux.refused(enforce, {"/home/x/python3.11": label})
    assert bool(said) == is_refused
    assert not said or f"/home/x/python3.11 has the label {label.split(':')[2]}" in said


def test_a_refused_execution_has_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "macd.service: Failed at step EXEC spawning /home/x/python3.11: Permission denied"
    step, said = starting.refused_step(["Started", line, "status=203/EXEC"])
    assert (step, said) == ("EXEC", line.partition(": ")[2])
    assert starting.remedy(step, said) == ""  # here nothing enforces: another cause
    monkeypatch.setattr(selinux, "enforces", lambda: True)
    assert "restorecon" in starting.remedy(step, said)
    assert starting.remedy("EXEC", "Failed at step EXEC spawning /x: No such file") == ""
    for lines in (SAYS, SAYS[2:]):  # the journal may have lost the line of the process that is gone
        assert starting.remedy(*starting.refused_step(lines)) == namespaces.REMEDY
    assert starting.refused_step(SAYS[:3])[1].startswith("Failed at step NAMESPACE")
    assert starting.refused_step(["Started", "exited"]) == ("", "")
    later = "t1.service: Main process exited, code=exited, status=1/FAILURE"
    assert starting.remedy(*starting.refused_step([*SAYS, "Started", later])) == ""
