"""On a real systemd: what came with a release runs as the service's user behind its walls."""

from __future__ import annotations

import json
from typing import Any

import pytest

from macd.ssh.session import open_session
from tests.hosts.test_deploy_hosts import APP, MORE, UNIT, Bench, bench
from tests.support import small_releases

__all__ = ["bench"]
pytestmark = pytest.mark.hosts

INDEX = 'index_url: "http://127.0.0.1:8099/simple"'

# A check that tells what it may, and fails: its last words come back as the reason.
NOSY = f"""
import json, os, sys
def works(do):
    try:
        do()
        return True
    except OSError:
        return False
def write(path):
    with open(path, "a") as file:
        file.write("x")
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
places = ["{APP}", "{APP}/data/live", "{APP}/state", "{APP}/runtimes"]
places += ["/etc", "/usr", "/var", "/opt"]
secrets = ["{APP}/.env", "{APP}/state/notify.json", "/etc/shadow"]
told = {{
    "uid": os.getuid(),
    "capabilities": int(status["CapEff"], 16),
    "no_new_privileges": status["NoNewPrivs"].strip(),
    "filtered": status["Seccomp"].strip(),
    "writes": [place for place in places if works(lambda: write(place + "/.written"))],
    "reads": [path for path in secrets if works(lambda: open(path).close())],
    "preloaded": os.environ.get("LD_PRELOAD"),
}}
print(json.dumps(told))
sys.exit(1)
"""
# As above when this file is there, else as the service of any good release.
ASKED = "/etc/tell-what-you-may"
WHEN_ASKED = f"""
import os, sys
if "--check" in sys.argv and os.path.exists("{ASKED}"):
    exec({NOSY!r})
"""
BEHIND_WALLS = {
    "capabilities": 0,
    "no_new_privileges": "1",
    "filtered": "2",
    "writes": [],
    "reads": [],
    "preloaded": None,
}
IN_THE_ARCHIVE = f"""
import json, subprocess, sys, time
sys.path.insert(0, "{APP}/bin/macd-host.pyz")
from macd.host.systemd.sandbox import Sandbox
walls = Sandbox("system", open("/etc/systemd/system/{UNIT}").read())
"""


def told_by(bench: Bench, code: str) -> Any:
    return json.loads(bench.on_prod("python3", "-I", "-c", IN_THE_ARCHIVE + code))


@pytest.fixture(scope="module", autouse=True)
def provisioned(bench: Bench) -> None:
    bench.invoke("provision", "--yes")
    small_releases.make(bench.inventory, 101)
    assert bench.json("deploy", "--yes")["outcomes"][0]["result"] == "committed"


def test_a_check_is_nobody_special_and_its_last_words_come_back(bench: Bench) -> None:
    before, life = bench.live, bench.life
    small_releases.make(bench.inventory, 102, more={"app/serve.py": NOSY.encode()})
    outcome = bench.json("deploy", "--yes", code=4)["outcomes"][0]
    assert outcome["reason"].startswith("its own check failed here: {")
    told = json.loads(outcome["reason"].partition("here: ")[2])
    assert told.pop("uid") == int(bench.on_prod("id", "-u", "macd")) != 0
    assert told == BEHIND_WALLS
    assert (bench.live, bench.life) == (before, life)
    assert bench.on_prod("systemctl", "list-units", "--all", "--quiet", "macd-confined*") == ""


def test_no_variable_that_loads_code_reaches_the_service(bench: Bench) -> None:
    text = bench.on_prod("cat", f"/etc/systemd/system/{UNIT}")
    names = [w for line in text.splitlines() if line.startswith("UnsetEnvironment=")
             for w in line.partition("=")[2].split()]  # fmt: skip
    assert {"LD_PRELOAD", "GCONV_PATH", "OPENSSL_CONF", "PYTHONPATH"} < set(names)
    bench.on_prod("cp", f"{APP}/.env", "/run/env.kept")
    lines = "".join(f"{name}=/no/such\\n" for name in [*names, "INNOCENT"])
    bench.on_prod("sh", "-c", f"printf '{lines}' >> {APP}/.env && systemctl restart {UNIT}")
    pid = bench.on_prod("systemctl", "show", "-p", "MainPID", "--value", UNIT)
    environ = bench.on_prod("cat", f"/proc/{pid}/environ").split("\0")
    bench.on_prod("cp", "/run/env.kept", f"{APP}/.env")
    bench.on_prod("systemctl", "restart", UNIT)
    reached = {variable.partition("=")[0] for variable in environ}
    assert "INNOCENT" in reached
    assert reached & set(names) == set()


def test_a_module_that_does_not_import_was_not_imported_by_root(bench: Bench) -> None:
    before = bench.live
    code = "import os\nraise ImportError(f'broken for uid {os.getuid()}')\n"
    small_releases.make(bench.inventory, 103, package="1.0", name="numpy", module=code)
    told = bench.invoke("deploy", "--yes", code=1).stderr
    assert f"broken for uid {bench.on_prod('id', '-u', 'macd')}" in told
    assert bench.live == before
    assert bench.on_prod("sh", "-c", f"ls -A {APP}/runtimes | grep -c building || true") == "0"


def test_what_pip_installed_is_roots_again(bench: Bench) -> None:
    release = small_releases.make(bench.inventory, 104, package="1.0")
    assert bench.json("deploy", "--yes")["outcomes"][0]["result"] == "committed"
    assert bench.live == release
    runtime = bench.on_prod("readlink", "-f", f"{APP}/current/runtime")
    tiny = bench.on_prod("sh", "-c", f"ls {runtime}/lib/python3*/site-packages/tiny.py")
    assert bench.on_prod("stat", "-c", "%U %a", tiny) == "root 644"
    compiled = f"ls {runtime}/lib/python3*/site-packages/__pycache__/tiny.*.pyc"
    assert bench.on_prod("sh", "-c", compiled)  # the service's account could not write it later
    assert bench.on_prod("find", runtime, "(", "!", "-user", "root", "-o", "-perm", "/6022", ")",
                         "!", "-type", "l") == ""  # fmt: skip
    assert bench.on_prod("find", f"{APP}/blobs", "!", "-user", "root") == ""
    python = f"{runtime}/bin/python"
    as_macd = ("setpriv", "--reuid", "macd", "--regid", "macd", "--clear-groups")
    version = bench.on_prod(*as_macd, python, "-I", "-c", "import tiny; print(tiny.__version__)")
    assert version == "1.0"
    assert bench.json("status")["hosts"][0]["rehearsal"]["ready"]
    bench.on_prod("rm", tiny)
    small_releases.make(bench.inventory, 105)
    assert "rollback target not usable: its runtime lacks 1 files" in bench.invoke("plan").stdout
    # The same release again builds the runtime again.
    bench.invoke("deploy", "--yes", "--restart", "--release", release)
    assert bench.on_prod("stat", "-c", "%U %a", tiny) == "root 644"
    assert bench.json("status")["hosts"][0]["rehearsal"]["ready"]


def test_pip_reaches_an_index_through_the_walls(bench: Bench) -> None:
    inventories = bench.inventory.root / "inventory"
    plain, to_index = MORE, MORE.replace("service: {", f"service: {{runtime: index, {INDEX}, ")
    text = (inventories / "deploying.yml").read_text()
    assert plain in text
    (inventories / "indexed.yml").write_text(text.replace(plain, to_index))
    release = small_releases.make(bench.inventory, 106, package="3.0")
    (wheel,) = bench.inventory.root.glob("releases/wheels/*/tiny-3.0-*.whl")
    shelf = "/run/index/simple/tiny"
    page = f'<!DOCTYPE html><html><body><a href="{wheel.name}">{wheel.name}</a></body></html>'
    put = "import sys; open(sys.argv[1], 'wb').write(bytes.fromhex(sys.argv[2]))"
    bench.on_prod("mkdir", "-p", shelf)
    bench.on_prod("python3", "-c", put, f"{shelf}/{wheel.name}", wheel.read_bytes().hex())
    bench.on_prod("python3", "-c", put, f"{shelf}/index.html", page.encode().hex())
    wheel.unlink()  # it can come from nowhere else
    serve = ("python3", "-m", "http.server", "8099", "--bind", "127.0.0.1", "-d", "/run/index")
    bench.on_prod("systemd-run", "--quiet", "--collect", "--unit=test-index", *serve)
    try:
        outcome = bench.json("deploy", "--yes", inventory="indexed")["outcomes"][0]
    finally:
        bench.on_prod("systemctl", "stop", "test-index")
    assert (outcome["result"], bench.live) == ("committed", release)
    python = bench.on_prod("readlink", "-f", f"{APP}/current/runtime") + "/bin/python"
    assert bench.on_prod(python, "-I", "-c", "import tiny; print(tiny.__version__)") == "3.0"


def test_what_takes_too_long_is_ended_with_all_it_started(bench: Bench) -> None:
    told = told_by(
        bench,
        """
try:
    walls.run(["/bin/sh", "-c", "sleep 4242 & echo begun; sleep 4242"], timeout=2)
    ended = "by itself"
except subprocess.TimeoutExpired as error:
    ended = error.stdout
print(json.dumps(ended))
""",
    )
    assert told == "begun\n"
    assert bench.on_prod("sh", "-c", "pgrep -f 'sleep 424[2]' || true") == ""
    assert bench.on_prod("systemctl", "list-units", "--all", "--quiet", "macd-confined*") == ""


def test_words_codes_secrets_and_floods(bench: Bench) -> None:
    told = told_by(
        bench,
        """
def say(*argv, **more):
    done = walls.run(argv, timeout=20, **more)
    return [done.returncode, done.stdout[:200], done.stderr[:200]]
print(json.dumps({
    "well": say("/bin/echo", "fine"),
    "secret": say("/usr/bin/printenv", "TOKEN", settings={"TOKEN": 'a"b\\\\c $d'}),
    "killed": say("/bin/sh", "-c", "kill -9 $$"),
    "nobody": walls.run(["/no/such/program"], timeout=20).returncode,
    "flood": len(walls.run(["/bin/sh", "-c", "yes"], timeout=20).stdout),
}))
""",
    )
    assert told["well"] == [0, "fine\n", ""]
    assert told["secret"] == [0, 'a"b\\c $d\n', ""]
    assert told["killed"][0] == 1
    assert "journalctl -xeu macd-confined-" in told["killed"][2]  # systemd's word: where to look
    assert told["nobody"] == 1
    assert 0 < told["flood"] <= 1 << 20


def test_without_somebody_to_be_nothing_is_run(bench: Bench) -> None:
    told = told_by(
        bench,
        """
from macd.host.failure import HostError
told = {}
for text in (None, "[Service]\\nExecStart=/bin/true\\n", "[Service]\\nUser=root\\n"):
    try:
        Sandbox("system", text).run(["/bin/touch", "/run/was-root"], timeout=20)
    except HostError as error:
        told[str(text)[-12:]] = error.kind
print(json.dumps(told))
""",
    )
    assert list(told.values()) == ["refused"] * 3
    assert bench.on_prod("sh", "-c", "ls /run/was-root || true") == ""


def test_a_build_whose_agent_was_killed_is_ended_before_the_next(bench: Bench) -> None:
    place = f"{APP}/runtimes/my build"
    told = told_by(
        bench,
        f"""
import os, signal
walls = Sandbox("system", walls.unit_text, "{APP}")
os.mkdir("{place}")
walls.give("{place}")
child = os.fork()
if child == 0:
    walls.run(["/bin/sh", "-c", 'echo on > "$0/by"; exec sleep 4343', "{place}"],
              timeout=300, writable="{place}")
while not os.path.exists("{place}/by"):
    time.sleep(0.1)
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
def left():
    sleeping = subprocess.run(["pgrep", "-fx", "sleep 4343"], capture_output=True).stdout
    return [bool(sleeping), [n for n in os.listdir("/run") if n.startswith("macd-confined")] != []]
before = left()
Sandbox("system", walls.unit_text, "/opt/another").end_leftovers()
others = left()
walls.end_leftovers()
print(json.dumps([before, others, left()]))
""",
    )
    assert told == [[True, True], [True, True], [False, False]]
    bench.on_prod("rm", "-r", place)


def test_the_checks_of_a_diagnosis_and_of_a_rollback_are_nobody_special(bench: Bench) -> None:
    asked = small_releases.make(bench.inventory, 110, first=WHEN_ASKED)
    assert bench.json("deploy", "--yes")["outcomes"][0]["result"] == "committed"
    bench.on_prod("touch", ASKED)
    host = bench.inventory.host("prod")
    with open_session(host, bench.inventory) as session:
        checkup = session.call("checkup", app=APP, unit=UNIT, scope="system")
    said = [json.loads(checkup["check"]["said"])]
    small_releases.make(bench.inventory, 111)
    assert bench.json("deploy", "--yes")["outcomes"][0]["result"] == "committed"
    before, life = bench.live, bench.life
    outcome = bench.json("rollback", "--yes", code=4)["outcomes"][0]
    bench.on_prod("rm", ASKED)
    assert outcome["release"] == asked
    assert (bench.live, bench.life) == (before, life)
    said.append(json.loads(outcome["reason"].partition("its own check failed here: ")[2]))
    account = int(bench.on_prod("id", "-u", "macd"))
    assert said == [{"uid": account, **BEHIND_WALLS}] * 2


REPEATS = """
import json, os, sys
if "--replay" in sys.argv:
    question = json.load(sys.stdin)
    print(json.dumps({"asked": question["ask"], "size": len(question["bars"]), "uid": os.getuid()}))
    sys.exit(0)
"""


def test_an_audits_question_reaches_the_release_behind_its_walls(bench: Bench) -> None:
    release = small_releases.make(bench.inventory, 120, first=REPEATS)
    bench.invoke("deploy", "--yes")
    host = bench.inventory.host("prod")
    question = json.dumps({"ask": "predict", "bars": "x" * 300_000}).encode()
    with open_session(host, bench.inventory) as session:
        answer = session.call(
            "replay",
            app=host.app_dir,
            unit=UNIT,
            scope=host.scope,
            release=release,
            question=question,
        )
    assert answer["code"] == 0, answer["complained"]
    said = json.loads(answer["said"])
    assert (said["asked"], said["size"]) == ("predict", 300_000)
    assert said["uid"] == int(bench.on_prod("id", "-u", "macd")) != 0
    assert bench.on_prod("systemctl", "list-units", "--all", "--quiet", "macd-confined*") == ""
