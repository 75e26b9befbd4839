"""What an inventory should say of an application, from what the survey saw of it. Pure.

Every guess is an Item that says how it is known. Nothing here is sure: a person reads it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from pydantic import TypeAdapter, ValidationError

from macd.host.survey import service_part
from macd.init.items import GATE_KEY, RELEASE_KEY, SIGNERS, Answers, Item, Origin, Place, Seen
from macd.inventory.names import HostName, Unit
from macd.inventory.own_app import Command, Relative, Word

_MEANINGS = (  # what the gate knows by name, and what fields that mean it are called
    ("time", r"(^|\.)(timestamp|time|ts|logged_at)$", ("time", "number")),
    ("bar_time", r"(^|\.)(bar_time|bar|candle_time|open_time)$", ("time", "number")),
    ("symbol", r"(^|\.)(symbol|pair|ticker)$", ("str",)),
    ("error", r"(^|\.)(ml_)?error$", ("str", "null", "NoneType")),
    ("coverage", r"(^|\.|_)(bull_prob|prob_up|probability|prob|p_up)$", ("probability",)),
    ("activation", r"(^|\.|_)stacking_prob$", ("probability",)),
    ("tft", r"(^|\.|_)tft_prob$", ("probability",)),
    ("lstm", r"(^|\.|_)lstm_prob$", ("probability",)),
    ("mean", r"(^|\.|_)(avg|mean)_prob$", ("probability",)),
    ("close", r"(^|\.)(close|close_price)$", ("number",)),
)
_SCORE = re.compile(r"auc|acc|f1|sharpe|loss|logloss")
_PYTHON = re.compile(r"python[0-9.]*")
_EXPORTS = {
    "poetry.lock": "poetry export -o requirements.txt makes it",
    "uv.lock": "uv export --no-emit-project -o requirements.txt makes it",
    "pdm.lock": "pdm export --prod -o requirements.txt makes it",
    "Pipfile": "pipenv requirements > requirements.txt makes it",
    "pyproject.toml": "uv pip compile pyproject.toml -o requirements.txt makes it",
}
_OURS = ("releases", "runtimes", "blobs", "bin", "state", "current", "previous")
_UNDONE = "state.undone-"  # what provision --undo leaves


def items(answers: Answers, seen: Seen) -> list[Item]:
    """The whole inventory, in the order in which it is written."""
    own = bool(answers.source)
    engine, others = chosen(answers, seen) if own else (None, [])
    return [
        *_around(answers),
        *_hosts(answers, seen, engine),
        *(_app(answers, seen, engine, others) if own else ()),
        *_rest(answers, seen, engine, own=own),
    ]


def candidates(answers: Answers, seen: Seen) -> list[Mapping[str, Any]]:
    """Units that may be the application's, the likeliest engine first."""
    host = seen.host or {}
    scripts = seen.source.get("scripts", {})
    units = [unit for unit in host.get("units", []) if _may_be_ours(unit, answers.app_dir, scripts)]
    if not host.get("units"):
        units = [_from_file(path, text) for path, text in seen.source.get("units", {}).items()]
    return sorted(units, key=lambda unit: _rank(unit, answers.unit, seen))


def chosen(
    answers: Answers, seen: Seen
) -> tuple[Mapping[str, Any] | None, list[Mapping[str, Any]]]:
    """The unit that is the engine, and the others that run from the same directory."""
    units = candidates(answers, seen)
    if not units:
        return None, []
    engine, *others = units
    return engine, [unit for unit in others if unit["directory"] == engine["directory"]]


def _may_be_ours(unit: Mapping[str, Any], app_dir: str, scripts: Mapping[str, Any]) -> bool:
    if app_dir:
        place = app_dir.removeprefix("~")
        return place in unit["directory"] or place in unit["command"]
    return any(PurePosixPath(word).name in scripts for word in _words(unit["command"]))


def _from_file(path: str, text: str) -> dict[str, Any]:
    name = PurePosixPath(path).name
    nothing = {"active": "", "pid": 0, "ports": [], "health": "", "dropins": []}
    return {"unit": name, "scope": "", "path": path, **service_part(text), **nothing}


def _rank(unit: Mapping[str, Any], wanted: str, seen: Seen) -> tuple[Any, ...]:
    """The unit that was named; one that is no page; one that writes logs; the shorter name."""
    stem = unit["unit"].removesuffix(".service")
    script = seen.source.get("scripts", {}).get(_script_of(unit["command"]), {})
    is_web = bool(re.search(r"web|api|dash|ui", stem)) or "flask" in script.get("imports", ())
    writes = any("log" in place for place in script.get("writes", ()))
    return (stem != wanted.removesuffix(".service"), is_web, not writes, len(stem), stem)


def _words(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError:
        return []
    if len(words) > 2 and words[0].endswith(("/sh", "/bash")) and "c" in words[1]:
        # bash -c "cd /opt/x && exec python3 live.py": the last command is what stays
        return [word for word in _words(words[-1].split("&&")[-1]) if word != "exec"]
    return words


def _script_of(command: str) -> str:
    words = _words(command)
    return next((PurePosixPath(w).name for w in words if w.endswith(".py")), "")


def own_command(unit: Mapping[str, Any]) -> str:
    """A unit's command as a release runs it: its own Python, paths below the source.

    "" where it can't be run so.
    """
    words = _words(unit["command"])
    if not words:
        return ""
    first, *rest = words
    name = PurePosixPath(first).name
    inside = f"{unit['directory']}/"
    if _PYTHON.fullmatch(name):
        first = "python3"
    elif "/bin/" in first and first.startswith(inside):
        first = name  # a program of their virtual environment, such as gunicorn
    command = shlex.join([first, *(word.removeprefix(inside) for word in rest)])
    return command if _valid(Command, command) and "$" not in command else ""


def _valid(kind: Any, value: object) -> bool:
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return False
    return True


def train_host(answers: Answers) -> str:
    """The training host's name in the inventory: the alias that was given, where it is a name."""
    alias = answers.train.ssh if answers.train else ""
    return alias if _valid(HostName, alias) and alias not in ("jump", "prod") else "train"


def _known(unit: Mapping[str, Any]) -> Origin:
    """A unit that lies in the source is not yet what the host has."""
    return "found" if unit["scope"] else "guessed"


def _called(unit: Mapping[str, Any]) -> str:
    return unit["unit"] if unit["scope"] else f"{unit['path']} of the source"


def _around(answers: Answers) -> Iterator[Item]:
    if answers.ssh_config:
        yield Item(("ssh_config",), answers.ssh_config, "given")


def _hosts(answers: Answers, seen: Seen, engine: Mapping[str, Any] | None) -> Iterator[Item]:
    if answers.jump:
        yield Item(("hosts", "jump"), {"role": "jump", **_reached(answers.jump)}, "given")
    if answers.train:
        box = {"role": "train", **_reached(answers.train)}
        if answers.jump:
            box["jump"] = ["jump"]
        box["work_dir"] = f"~/work/{answers.app}"
        note = "work_dir is made by the first training"
        yield Item(("hosts", train_host(answers)), box, "given", note)
    key = ("hosts", "prod")
    prod = answers.prod
    yield Item((*key, "role"), "serve")
    yield Item((*key, "env"), "prod", "", "what commands act on by default")
    if prod:
        for name, value in _reached(prod).items():
            yield Item((*key, name), value, "given")
    else:
        yield Item((*key, "ssh"), "prod", "decide", "ssh alias, name or address")
    yield from _place_on_host(answers, engine, key)
    if seen.python:
        yield Item((*key, "python"), seen.python, "found", "python3 there is older than 3.11")
    system = bool(engine) and (engine or {})["scope"] == "system"
    if answers.become:
        yield Item((*key, "become"), answers.become, "given", "provision needs root")
    elif system and (seen.host or {}).get("uid"):
        yield Item((*key, "become"), "sudo", "guessed", "the login is not root, and provision is")


def _place_on_host(
    answers: Answers, engine: Mapping[str, Any] | None, key: tuple[str, ...]
) -> Iterator[Item]:
    where = answers.app_dir or (engine or {}).get("directory") or f"/opt/{answers.app}"
    name = (engine or {}).get("unit", "").removesuffix(".service")
    if answers.app_dir:
        yield Item((*key, "app_dir"), where, "given")
    elif engine and engine["directory"]:
        note = f"WorkingDirectory of {_called(engine)}"
        yield Item((*key, "app_dir"), where, _known(engine), note)
    else:
        yield Item((*key, "app_dir"), where, "decide", "its directory there")
    if engine and _valid(Unit, name):
        note = f"{engine['path']}, {engine['active'] or 'not asked'}"
        yield Item((*key, "unit"), name, _known(engine), note)
    else:
        unit = answers.unit.removesuffix(".service") or answers.app
        yield Item((*key, "unit"), unit, "decide", "the unit's name; provision makes it")
    if engine and engine["scope"] == "user":
        yield Item((*key, "scope"), "user", "found", "a unit of the login's own, not the system's")


def _reached(place: Place) -> dict[str, Any]:
    fields = {"ssh": place.ssh, "user": place.user, "port": place.port}
    return {name: value for name, value in fields.items() if value}


def _app(
    answers: Answers,
    seen: Seen,
    engine: Mapping[str, Any] | None,
    others: list[Mapping[str, Any]],
) -> Iterator[Item]:
    key = ("app",)
    yield Item((*key, "name"), answers.app, "guessed", "stands in every manifest; choose it once")
    yield Item((*key, "source"), answers.source, "given")
    if seen.tracked is None:
        names = sorted({"*.py", *seen.source.get("requirements", [])})
        globs = [*names, *(f"{top}/**/*.py" for top in _packages(seen))]
        yield Item((*key, "files"), globs, "guessed", "no git repository: these are released")
    else:
        note = f"what git tracks is released: {len(seen.tracked)} files"
        yield Item((*key, "files"), [], "found", note)
    training = bool(answers.train)
    models = [f"{name}/*" for name in _untracked(seen, "models") if _valid(Relative, f"{name}/*")]
    where = "" if training else "; released from here"
    if models:
        note = f"not in git{where}"
        yield Item((*key, "models"), models, "found", note, active=not training)
    yield from _train(seen, active=training)
    yield from _check(seen)
    yield from _serve(seen, engine, others)
    yield from _signals(seen)
    yield from _flag(seen, engine)


def _packages(seen: Seen) -> list[str]:
    places = {p.split("/")[0] for p in seen.source.get("scripts", {}) if "/" in p}
    return sorted(place for place in places if _valid(Relative, place))


def _untracked(seen: Seen, kind: str) -> dict[str, list[str]]:
    """Directories of that kind of which git has nothing."""
    groups: dict[str, list[str]] = dict(seen.source.get(kind, {}))
    tracked = seen.tracked or frozenset()
    return {
        name: files
        for name, files in groups.items()
        if not any(f"{name}/{file}" in tracked for file in files)
    }


def _train(seen: Seen, *, active: bool) -> Iterator[Item]:
    key = ("app", "train")
    stages = _stages(seen.source.get("scripts", {}))
    if not stages:
        return
    why = "" if active else "; not in force: no training host was given"
    note = "by names and options; keep what you run"
    for name, command in stages.items():
        yield Item((*key, "stages", name), command, "guessed", f"{note}{why}", active)
        note, why = "", ""
    data = [name for name in _untracked(seen, "bars") if _valid(Relative, name)]
    yield Item((*key, "data"), data, "guessed", "not in git and holds tables: sent there", active)
    setup = [name for name in seen.source.get("requirements", []) if re.search("gpu|train", name)]
    if setup:
        yield Item((*key, "setup"), setup[0], "guessed", "an environment there, built once", active)
    made = [f"{name}/*" for name in _untracked(seen, "models") or _model_places(seen)]
    logs = sorted({f"{PurePosixPath(p).parent}/*.log" for p in seen.source.get("plain_logs", [])})
    artefacts = [path for path in [*made, *logs] if _valid(Relative, path)]
    note = "what each training writes anew"
    origin = "found" if made else "decide"
    yield Item((*key, "artefacts"), artefacts or ["models/*"], origin, note, active)  # type: ignore[arg-type]
    yield from _metrics(seen, active=active)


def _model_places(seen: Seen) -> list[str]:
    """Directories of models that scripts name, where none lies here."""
    named = {p for s in seen.source.get("scripts", {}).values() for p in s["paths"]}
    return sorted(p.rstrip("/") for p in named if re.search(r"models?/?$", p))[:1]


def _stages(scripts: Mapping[str, Any]) -> dict[str, str]:
    stages: dict[str, str] = {}
    programs = {path: s for path, s in scripts.items() if s["runs"]}
    for path in programs:
        name = PurePosixPath(path).stem
        if re.match(r"(verify|check|validate)_.*(data|klines|bars)", name):
            stages["verify"] = f"python3 {path}"
    for path, script in programs.items():
        if not re.match(r"(train|fit)(_|$)|.*_train(ing)?$", PurePosixPath(path).stem):
            continue
        options = script["options"]
        fields = "".join(f" --{n} {{{n}}}" for n in ("tf", "symbol") if f"--{n}" in options)
        modes = options.get("--mode") or options.get("--model") or []
        flag = "--mode" if options.get("--mode") else "--model"
        for mode in modes:
            stages[_word(mode)] = f"python3 {path} {flag} {mode}{fields}"
        if not modes:
            stages[_word(PurePosixPath(path).stem)] = f"python3 {path}{fields}"
    return {n: c for n, c in stages.items() if _valid(Word, n) and _valid(Command, c)}


def _word(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def _metrics(seen: Seen, *, active: bool) -> Iterator[Item]:
    key, bounds = ("app", "train"), {}
    for path, numbers in seen.source.get("metrics", {}).items():
        stem = PurePosixPath(path).stem.removesuffix("_meta")
        for name in (
            name for name in numbers if _SCORE.search(name) and re.fullmatch(r"\w+", name)
        ):
            metric = _word(f"{stem}_{name}")
            if _valid(Word, metric) and _valid(Relative, path):
                yield Item((*key, "metrics", metric), f"{path}#/{name}", "found", "", active)
                if "auc" in name:
                    bounds[metric] = {"min": 0.5, "level": "warn"}
    for metric, bound in bounds.items():
        note = "the least for a release; block refuses"
        yield Item((*key, "criteria", metric), bound, "decide", note, active)


def _check(seen: Seen) -> Iterator[Item]:
    for path, script in seen.source.get("scripts", {}).items():
        name = PurePosixPath(path).stem
        wanted = re.search(r"health|check_model|model_check|smoke|selftest", name)
        if wanted and script["runs"] and not re.search("data", name):
            alone = [o for o in script["options"] if re.search(r"skip.*live|offline|no-net", o)]
            command = " ".join(["python3", path, *alone[:1]])
            if _valid(Command, command):
                note = "must exit 0 before a switch, without network"
                yield Item(("app", "check"), command, "guessed", note)
                return
    note = "a command that must exit 0 before a switch: none was found"
    yield Item(("app", "check"), "", "decide", note)


def _serve(
    seen: Seen, engine: Mapping[str, Any] | None, others: list[Mapping[str, Any]]
) -> Iterator[Item]:
    key = ("app", "serve")
    command = own_command(engine) if engine else ""
    if engine and command:
        note = f"ExecStart of {_called(engine)}"
        yield Item((*key, "command"), command, _known(engine), note)
    else:
        command = _likely_service(seen)
        note = (
            f"its ExecStart can't be read so: {engine['command']}"
            if engine
            else "no unit was found"
        )
        yield Item((*key, "command"), command or "python3 main.py", "decide", note)
    requirements = seen.source.get("requirements", [])
    if "requirements.txt" in requirements:
        note = "locked with hashes when a release is made"
        yield Item((*key, "requirements"), "requirements.txt", "found", note)
    elif requirements:
        note = f"which of {', '.join(requirements)} the service needs"
        likely = [name for name in requirements if re.search("prod|serve|live|deploy", name)]
        yield Item((*key, "requirements"), [*likely, *requirements][0], "decide", note)
    elif packages := seen.source.get("packages", []):
        made = _EXPORTS.get(packages[0], f"write it from what {packages[0]} names")
        note = f"there is none, so no package is released; {made}"
        yield Item((*key, "requirements"), "requirements.txt", "decide", note, active=False)
    yield _ready(key, engine)
    places = _written(seen, command)
    note = "survive releases; nothing else may be written"
    yield Item((*key, "writes"), places, "guessed", note)
    for unit in others:
        part, end = own_command(unit), _end(unit, engine)
        if part and _valid(HostName, end):
            base = (engine or {})["unit"].removesuffix(".service")
            same = unit["unit"] == f"{base}-{end}.service"
            note = _called(unit) if same else f"{_called(unit)} today; macd's is {base}-{end}"
            yield Item((*key, "more", end, "command"), part, _known(unit), note)
            yield _ready((*key, "more", end), unit)


def _ready(key: tuple[str, ...], unit: Mapping[str, Any] | None) -> Item:
    if unit and unit["health"].endswith("/"):
        note = "answers there now, but no address of health does; better {log: REGEX}"
        return Item((*key, "ready"), {"http": unit["health"]}, "guessed", note)
    if unit and unit["health"]:
        return Item((*key, "ready"), {"http": unit["health"]}, "found", "answers there now")
    if unit and unit["type"] == "notify":
        return Item((*key, "ready"), "notify", _known(unit), "Type=notify in its unit")
    note = "better {http: URL}, {log: REGEX} or notify"
    return Item((*key, "ready"), {"running": 20}, "decide", note)


def _end(unit: Mapping[str, Any], engine: Mapping[str, Any] | None) -> str:
    stem = unit["unit"].removesuffix(".service")
    base = (engine or {})["unit"].removesuffix(".service")
    return str(stem.removeprefix(f"{base}-") or "more")


def _likely_service(seen: Seen) -> str:
    for pattern in (r"live|engine|runner|bot", r"serve|server|service|main|app|run"):
        for path, script in seen.source.get("scripts", {}).items():
            if script["runs"] and re.search(pattern, PurePosixPath(path).stem):
                return f"python3 {path}" if _valid(Command, f"python3 {path}") else ""
    return ""


def _written(seen: Seen, command: str) -> list[str]:
    """Directories that the service writes: its script names them, or logs lie there."""
    script = seen.source.get("scripts", {}).get(_script_of(command), {})
    logs = [*seen.source.get("logs", {}), *_host_part(seen).get("logs", {})]
    places = {*script.get("writes", ()), *(str(PurePosixPath(p).parent) for p in logs)}
    places = {"logs" if p.split("/")[0] == "logs" else p for p in places}
    models = set(seen.source.get("models", {})) | set(_host_part(seen).get("models", {}))
    usable = [
        place
        for place in sorted(places)
        if place not in (".", *models)
        and place.split("/")[0] not in _OURS
        and not place.startswith(_UNDONE)
        and _valid(Relative, place)
        and not any(other != place and place.startswith(f"{other}/") for other in places)
    ]
    return usable or ["logs"]


def _host_part(seen: Seen) -> Mapping[str, Any]:
    part: Mapping[str, Any] = (seen.host or {}).get("directory", {})
    return part


def _signals(seen: Seen) -> Iterator[Item]:
    key = ("app", "signals")
    on_host = _host_part(seen).get("logs", {})
    logs = on_host or seen.source.get("logs", {})
    best: tuple[int, str, str, Mapping[str, str]] | None = None
    for pattern, levels in logs.items():
        for level, fields in levels.items():
            score = sum(kind == "probability" for kind in fields.values())
            if _valid(Relative, pattern) and level and (best is None or score > best[0]):
                best = (score, pattern, level, fields)
    if best is None:
        return
    _, pattern, level, fields = best
    where = "on the host" if on_host else "here"
    yield Item(
        (*key, "files"), pattern, "found", f"JSON lines {where}, {len(fields)} fields in a line"
    )
    yield Item((*key, "level"), level, "guessed", "the level with most probabilities")
    used = set()
    for meaning, shape, kinds in _MEANINGS:
        match = next((f for f, k in fields.items() if re.search(shape, f) and k in kinds), None)
        if match and match not in used:
            used.add(match)
            yield Item((*key, "map", meaning), match, "guessed", "")
    covered = any(re.search(_MEANINGS[4][1], name) for name in used)
    for name, kind in fields.items():
        rate = _word(f"{name.split('.')[-1]}").removeprefix("ml_").removesuffix("_prob")
        rate = f"{rate}_normal"
        if kind == "probability" and name not in used and _valid(Word, rate):
            of = {"of": "coverage"} if covered else {}
            rule = {"field": name, **of, "needs": "probability", "min": 0.9, "level": "warn"}
            yield Item((*key, "rates", rate), rule, "guessed", "share of lines with a probability")


def _flag(seen: Seen, engine: Mapping[str, Any] | None) -> Iterator[Item]:
    key = ("app", "flag")
    dropped = set((engine or {}).get("dropin_variables", []))
    named = {*dropped, *(engine or {}).get("variables", [])}
    for names in [*seen.source.get("env", {}).values(), *_host_part(seen).get("env", {}).values()]:
        named |= set(names)
    read = {n for s in seen.source.get("scripts", {}).values() for n in s["variables"]}
    usual = "ML_ENABLE_STACKING"
    flags = sorted(n for n in named | read if re.search(r"ENABLE.*(STACK|ML|MODEL)", n))
    if not flags:
        return
    name = usual if usual in flags else flags[0]
    place = "dropin" if name in dropped else "env"
    nothing = "; nothing sets it today" if seen.host else ""
    note = "in .env" if name in named else f"a script reads it{nothing}"
    note = "a drop-in of the unit sets it today" if place == "dropin" else note
    yield Item((*key, "name"), name, "found", note)
    yield Item((*key, "where"), place, "found" if seen.host else "guessed", "")


def _market(seen: Seen) -> tuple[str, str]:
    """Symbol and timeframe from names of bar files, such as ETHUSDT_1h.csv; "" where none say."""
    for files in seen.source.get("bars", {}).values():
        for file in files:
            if match := re.match(r"([A-Z0-9]{5,20})[_-]([1-9][0-9]?[mhd])[._]", file):
                return match[1], match[2]
    return "", ""


def _rest(
    answers: Answers, seen: Seen, engine: Mapping[str, Any] | None, *, own: bool
) -> Iterator[Item]:
    symbol, tf = _market(seen)
    if own:
        origin: Origin = "guessed" if symbol else "decide"
        note = "fills {symbol} and {tf} of the stages"
        yield Item(("train", "symbol"), symbol or "BTCUSDT", origin, note)
        yield Item(("train", "tf"), tf or "1h", origin)
    else:
        yield Item(("train", "symbol"), "BTCUSDT", "decide", "its bars: invoke data.import FILE")
    if answers.train:
        note = "take the # away where the training host has no GPU: its CPU trains"
        yield Item(("train", "require_gpu"), False, "", note, active=False)
    yield Item(
        ("release", "sign_key"), f"{answers.keys}/{RELEASE_KEY}", "", "private, signs releases"
    )
    yield Item(("release", "gate_key"), f"{answers.keys}/{GATE_KEY}", "", "signs gate reports")
    note = "who may sign; put on hosts by provision"
    yield Item(("release", "allowed_signers"), SIGNERS, "", note)
    user = (engine or {}).get("user", "")
    if engine and user and user != "root":
        yield Item(("service", "user"), user, _known(engine), f"User= of {_called(engine)}")
    else:
        root = (
            "; it runs as root today" if engine and not user and engine["scope"] == "system" else ""
        )
        yield Item(("service", "user"), "macd", "decide", f"the account of the service{root}")
    if own:
        yield Item(("service", "memory_max"), "2G", "decide", "it is ended above that")
