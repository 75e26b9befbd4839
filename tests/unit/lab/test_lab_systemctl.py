"""The lab's systemctl ends a service with all that descends from it."""

from __future__ import annotations

import subprocess

from macd.lab.systemctl import LabSystemctl


def test_a_services_processes_are_it_and_its_descendants() -> None:
    script = "sh -c 'sleep 600 & echo $! $$; wait' & echo $!; wait"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        below = {int(word) for _ in range(2) for word in service.stdout.readline().split()}
        with subprocess.Popen(["sleep", "600"]) as stranger:
            pids = LabSystemctl().pidlist_of(service.pid)
            stranger.kill()
        subprocess.run(["kill", "-KILL", *map(str, pids)], check=True)
    assert pids[0] == service.pid
    assert set(pids[1:]) == below
    assert LabSystemctl().pidlist_of(None) == []
