"""An inventory is found, read, and every problem in it is told at once with its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from macd.errors import ExitCode, UsageError
from macd.inventory import available, load, project_root

GOOD = """
hosts:
  jump: {role: jump, ssh: j}
  prod: {role: serve, env: prod, ssh: p, app_dir: /opt/macd-analysis}
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "inventory").mkdir()
    (tmp_path / "tasks.py").touch()
    monkeypatch.delenv("MACD_INVENTORY", raising=False)
    monkeypatch.delenv("MACD_ROOT", raising=False)
    return tmp_path


def write(root: Path, text: str, name: str = "one") -> None:
    (root / "inventory" / f"{name}.yml").write_text(text, encoding="utf-8")


def refusal(root: Path, text: str) -> str:
    write(root, text)
    with pytest.raises(UsageError) as caught:
        load("one", root=root)
    assert caught.value.exit_code == ExitCode.USAGE
    return str(caught.value)


def test_relative_paths_start_at_the_file_and_home_is_expanded(root: Path) -> None:
    write(root, GOOD + "ssh_config: ../x/ssh_config\nknown_hosts: ~/kh\n")
    inventory = load("one", root=root)
    assert inventory.ssh_config == root / "x" / "ssh_config"
    assert inventory.known_hosts == Path.home() / "kh"
    assert inventory.train.data_dir == root / "data"
    assert inventory.state_dir == root / ".macd" / "one"
    assert (inventory.name, inventory.root) == ("one", root)


def test_known_hosts_stand_with_the_inventory_by_default(root: Path) -> None:
    write(root, GOOD)
    inventory = load("one", root=root)
    assert inventory.known_hosts == root / "inventory" / "known_hosts.one"
    assert inventory.ssh_config is None  # what ssh itself reads


def test_every_problem_is_told_at_once_with_line_and_key(root: Path) -> None:
    text = refusal(
        root,
        """\
ssh_confg: x
hosts:
  a: {role: trian, ssh: "-oProxyCommand=x", port: 70000, user: "a;b"}
  b:
    role: serve
    ssh: x
    app_dir: /opt/$(rm -rf x)
  c: {role: train, ssh: x, name: q}
gate: {ml_coverage: 80, min_bars: x}
train: {criteria: {n_oof: {level: blck}}, stages: [foo]}
""",
    )
    for place in (
        "line 1: ssh_confg",
        "did you mean ssh_config?",
        "line 3: hosts.a.role",
        "line 3: hosts.a.ssh",
        "line 3: hosts.a.port",
        "line 3: hosts.a.user",
        "line 7: hosts.b.app_dir",
        "line 8: hosts.c",
        "expected work_dir set, because role is train",
        "line 8: hosts.c.name",
        "line 9: gate.ml_coverage",
        "line 9: gate.min_bars",
        "line 10: train.criteria.n_oof.level",
        "line 10: train.stages.0",
    ):
        assert place in text, place
    assert "found 70000" in text and "'blck'" in text


def test_variables_come_from_the_environment(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T_HOST", "box.example")
    monkeypatch.setenv("T_PORT", "2200")
    write(root, GOOD + "  x: {role: jump, ssh: '${T_HOST}', port: '${T_PORT}'}\n")
    host = load("one", root=root).host("x")
    assert (host.ssh, host.port) == ("box.example", 2200)


def test_all_unset_variables_are_told_together(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("T_ONE", "T_TWO"):
        monkeypatch.delenv(name, raising=False)
    text = refusal(root, GOOD + "  x: {role: jump, ssh: '${T_ONE}', user: '${T_TWO}', port: 0}\n")
    assert "the environment variable T_ONE" in text
    assert "the environment variable T_TWO" in text
    assert "hosts.x.port" in text  # other problems too
    assert text.count("hosts.x.ssh") == 1  # not a second time for the value it doesn't have


def test_the_value_of_a_variable_is_never_shown(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("T_SECRET", "hunter2 hunter2")
    text = refusal(root, GOOD + "notify: ['${T_SECRET}']\n")
    assert "notify.0" in text and "${T_SECRET}" in text
    assert "hunter2" not in text


def test_the_guards_address_is_a_secret_and_goes_by_https(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("T_SECRET", "https://hooks.example/hunter2?x=1")
    write(root, GOOD + "guard: {notify_url: '${T_SECRET}'}\n")
    known = load("one", root=root)
    assert known.guard.notify_url == "https://hooks.example/hunter2?x=1"
    assert "hunter2" not in repr(known)
    for wrong in ("http://hooks.example/hunter2", "file:///hunter2", "https://a/ hunter2", "x"):
        monkeypatch.setenv("T_SECRET", wrong)
        text = refusal(root, GOOD + "guard: {notify_url: '${T_SECRET}'}\n")
        assert "guard.notify_url" in text and "hunter2" not in text


def test_an_index_may_carry_a_password_by_https_only(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for fine in ("https://me:hunter2@packages.example/simple", "http://packages.example:80/simple"):
        monkeypatch.setenv("T_INDEX", fine)
        write(root, GOOD + "service: {runtime: index, index_url: '${T_INDEX}'}\n")
        known = load("one", root=root)
        assert known.service.index_url == fine
        assert "hunter2" not in repr(known)
    for wrong in ("http://me:hunter2@packages.example/", "file:///hunter2", "https://a/'hunter2"):
        monkeypatch.setenv("T_INDEX", wrong)
        text = refusal(root, GOOD + "service: {index_url: '${T_INDEX}'}\n")
        assert "service.index_url" in text
        assert "hunter2" not in text


def test_a_doubled_dollar_is_a_plain_one(root: Path) -> None:
    write(root, GOOD + "notify: ['json://h/$${x}']\n")
    assert load("one", root=root).notify == ("json://h/${x}",)


@pytest.mark.parametrize("broken", ["${", "${}", "${A B}", "${1A}"])
def test_a_malformed_variable_is_told(root: Path, broken: str) -> None:
    assert "${NAME}" in refusal(root, GOOD + f"notify: ['json://h/{broken}']\n")


def test_a_key_written_twice_is_refused(root: Path) -> None:
    text = refusal(root, GOOD + "gate: {days: 1}\ngate: {days: 2}\n")
    assert "line 6: gate" in text and "after line 5" in text


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("hosts: [", "line 1"),
        ("a: 1\n  b: 2\n", "line 2"),
        ("", "found nothing"),
        ("- 1\n", "expected keys such as hosts:"),
        ("hosts: {}\ntrain:\n", "hosts"),
        ("1: x\n", "keys that are text"),
        ("hosts: !!python/object:os.system x\n", "line 1"),
        ("hosts: &a {b: *a}\n", "contains itself"),
        ("a: 1\n---\nb: 1\n", "expected YAML"),
    ],
)
def test_files_that_are_no_inventory_get_one_clear_message(
    root: Path, text: str, part: str
) -> None:
    assert part in refusal(root, text)


def test_a_binary_file_is_told(root: Path) -> None:
    (root / "inventory" / "one.yml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="can't be read"):
        load("one", root=root)


@pytest.mark.parametrize("name", ["nope", "../one", "/etc/passwd", "-x", "a/b"])
def test_a_missing_inventory_names_the_ones_there_are(root: Path, name: str) -> None:
    write(root, GOOD)
    with pytest.raises(UsageError) as caught:
        load(name, root=root)
    assert "one" in caught.value.hint or "has: one" in caught.value.why


def test_a_missing_production_says_how_to_make_it(root: Path) -> None:
    write(root, GOOD, "production.example")
    with pytest.raises(UsageError) as caught:
        load("production", root=root)
    assert "cp inventory/production.example.yml" in caught.value.hint


def test_the_environment_chooses_the_inventory(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(root, GOOD, "lab")
    write(root, GOOD, "other")
    assert load(root=root).name == "lab"
    monkeypatch.setenv("MACD_INVENTORY", "other")
    assert load(root=root).name == "other"
    assert available(root) == ["lab", "other"]


def test_the_project_is_found_upwards_or_by_its_variable(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    deep = root / "a" / "b"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    assert project_root() == root
    outside = tmp_path_factory.mktemp("outside")
    monkeypatch.chdir(outside)
    with pytest.raises(UsageError, match="not inside the project"):
        project_root()
    monkeypatch.setenv("MACD_ROOT", str(root))
    assert project_root() == root


def test_hosts_are_found_by_name_and_by_environment(root: Path) -> None:
    write(root, GOOD + "  p2: {role: serve, env: prod, ssh: q, app_dir: ~/x}\n")
    inventory = load("one", root=root)
    assert [host.name for host in inventory.env_hosts("prod")] == ["prod", "p2"]
    assert inventory.host("jump").role == "jump"
    with pytest.raises(UsageError, match="no host 'x'"):
        inventory.host("x")
    with pytest.raises(UsageError) as caught:
        inventory.env_hosts("test")
    assert "prod" in caught.value.why


@pytest.mark.parametrize("chain", ["[a]", "[x, a]", "[b]"])
def test_jump_chains_that_come_back_are_refused(root: Path, chain: str) -> None:
    hosts = f"hosts:\n  a: {{role: jump, ssh: a, jump: {chain}}}\n"
    hosts += "  b: {role: jump, ssh: b, jump: [a]}\n"
    assert "a loop: a -> " in refusal(root, hosts)


def test_a_file_may_change_only_a_criterions_level(root: Path) -> None:
    write(root, GOOD + "train: {criteria: {n_oof: {level: warn}}}\n")
    criteria = load("one", root=root).train.criteria
    assert (criteria["n_oof"].threshold, criteria["n_oof"].level) == (10000, "warn")
    assert (criteria["lstm_val_auc"].threshold, criteria["lstm_val_auc"].level) == (0.57, "block")


@pytest.mark.parametrize("more", ["user: root", "user: quant, become: sudo"])
def test_a_users_services_are_not_roots(root: Path, more: str) -> None:
    serves = "  p2: {role: serve, env: prod, ssh: q, app_dir: ~/x, scope: user, %s}\n"
    said = refusal(root, GOOD + serves % more)
    assert "hosts.p2.scope" in said
    assert "a login that is not root" in said
    trains = "  t: {role: train, ssh: q, work_dir: ~/w, scope: user, user: root}\n"
    write(root, GOOD + trains + serves % "user: quant")
    assert load("one", root=root).hosts["t"].user == "root"


def test_a_setting_of_the_service_is_named_and_its_value_is_not_shown(root: Path) -> None:
    text = GOOD + "service: {env: {DB_URL: 'postgres://u:hunter2!w@h/db?x=1'}}\n"
    said = refusal(root, text)
    assert "service.env.DB_URL" in said
    assert "hunter2" not in said


@pytest.mark.parametrize(
    ("steps", "good"),
    [
        ("[]", True),
        ("[100]", True),
        ("[25, 50, 100]", True),
        ("[10, 60]", True),  # never all of it
        ("[50, 25]", False),
        ("[25, 25]", False),
        ("[0, 50]", False),
        ("[50, 101]", False),
        ("[2.5, 50]", False),
        ("[true, 50]", False),
        ("['25', 50]", False),
        ("25", False),
    ],
)
def test_the_guards_steps_rise_from_1_to_100(root: Path, steps: str, *, good: bool) -> None:
    text = GOOD + f"guard: {{steps: {steps}}}\n"
    if good:
        write(root, text)
        assert list(load("one", root=root).guard.steps) == json.loads(steps)
    else:
        assert "guard.steps" in refusal(root, text)


def test_one_value_where_a_list_belongs_is_told_in_plain_words(root: Path) -> None:
    assert "a list, in square brackets" in refusal(root, GOOD + "guard: {steps: 25}\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("service: {memory_max: lots}", "a size such as 500M or 2G"),
        ("release: {identity: a b}", "a name as in allowed_signers"),
        ("service: {feed: {exchange: Binance}}", "ccxt's name of an exchange"),
    ],
)
def test_what_a_text_must_look_like_is_told_in_words(root: Path, text: str, said: str) -> None:
    why = refusal(root, f"{GOOD}{text}\n")
    assert f"expected {said}" in why
    assert "pattern" not in why


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("symbol: A, symbols: [B, A]", "symbol the first of symbols"),
        ("symbols: [A, A]", "each symbol once"),
    ],
)
def test_several_symbols_that_contradict_are_refused(root: Path, more: str, said: str) -> None:
    assert said in refusal(root, f"{GOOD}train: {{{more}}}\n")


def test_the_first_of_several_symbols_is_the_symbol(root: Path) -> None:
    many = GOOD + "train: {symbols: [B, A]}\n"
    write(root, many + "service: {symbols: [A]}\n")
    inventory = load("one", root=root)
    assert (inventory.train.symbol, inventory.train.symbols) == ("B", ("B", "A"))
    assert inventory.service.symbols == ("A",)
    assert "at least one symbol" in refusal(root, many + "service: {symbols: []}\n")
    assert "one of symbol" in refusal(root, many + "service: {symbols: [A], symbol: B}\n")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("service: {instances: true, health: '127.0.0.1:8700'}", "health: unix, because instances"),
        ("service: {instances: true, socket: true}", "socket left out, because instances"),
    ],
)
def test_instances_and_what_they_can_not_have(root: Path, text: str, why: str) -> None:
    assert why in refusal(root, f"{GOOD}{text}\n")
    assert "a unit without @ for prod" in refusal(
        root, GOOD.replace("p, app", "p, unit: a@b, app") + "service: {instances: true}\n"
    )
    write(root, GOOD + "service: {instances: true}\n")
    assert load("one", root=root).service.socket is False


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("gate: {days: .inf}", "gate.days"),  # ended in a traceback of shadow-gate
        ("gate: {days: 1e9}", "gate.days"),
        ("gate: {expires_hours: .inf}", "gate.expires_hours"),
        ("gate: {expires_hours: 1e9}", "gate.expires_hours"),
        ("guard: {for_hours: .inf}", "guard.for_hours"),  # no part of it has a beginning
        ("guard: {for_hours: 1e9}", "guard.for_hours"),  # ends in no year that a date can hold
        ("guard: {every_hours: .inf}", "guard"),
        ("guard: {every_hours: 48}", "guard"),  # the default watch ends before its first look
        ("guard: {every_hours: 1.5, for_hours: 1}", "guard"),
        ("guard: {every_hours: 0.000000001}", "guard"),  # 3.6e-06 is no time to systemd
        ("alerts: {every_minutes: 0.000000001}", "alerts.every_minutes"),
    ],
)
def test_a_time_without_an_end_or_a_guard_that_never_looks_is_refused(
    root: Path, text: str, key: str
) -> None:
    assert f"{key}\n" in refusal(root, f"{GOOD}{text}\n")


@pytest.mark.parametrize(
    "text",
    [
        "gate: {days: 3650, expires_hours: 8784}",
        "guard: {every_hours: 24, for_hours: 24}",
        "guard: {every_hours: 8784, for_hours: 8784}",
        "guard: {every_hours: 0.0003, for_hours: 1}",
        "alerts: {every_minutes: 0}",
        "alerts: {every_minutes: 0.02}",
    ],
)
def test_the_longest_and_the_shortest_times_are_taken(root: Path, text: str) -> None:
    write(root, f"{GOOD}{text}\n")
    load("one", root=root)
