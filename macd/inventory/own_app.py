"""What an inventory says of an application of one's own: how it is trained, released and served.

Each field is documented by a comment in inventory/own-app.example.yml, which a test holds to.
"""

import re
import shlex
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from macd.criteria import Level
from macd.inventory.names import (
    DeeperError,
    HostName,
    LocalPath,
    matching,
    unknown_name,
    variable_name,
)

_PART = re.compile(r"[\w.+@=,*?\[\] -]{1,200}")
_HERE = re.compile(r"http://(127\.0\.0\.1|localhost|\[::1\]):([1-9][0-9]{0,4})(/[!-~]*)?")
_HIGHEST_PORT = 65535
_DOTTED = re.compile(r"[A-Za-z_][\w-]{0,99}(\.[A-Za-z_0-9][\w-]{0,99}){0,9}")
_WORD = re.compile(r"[a-z][a-z0-9_]{0,63}")
# What the gate knows by name: when and of what a line is, the guide's four shares, and what it
# takes beside them to compare stacking with the mean of the models.
MEANINGS = (
    "time",
    "bar_time",
    "symbol",
    "release",
    "error",
    "coverage",
    "activation",
    "tft",
    "lstm",
    "mean",
    "close",
    "horizon",
)
_MAPPED = (*MEANINGS, "level")


def _relative(text: str) -> str:
    """A path or glob inside the source: no way out of it, nothing hidden by a leading dash."""
    parts = PurePosixPath(text).parts
    sound = parts and not text.startswith(("/", "-", "~")) and ".." not in parts
    if not sound or not all(_PART.fullmatch(part) for part in parts):
        raise ValueError("a path relative to the source, such as data/ml_models (no .., no ~)")
    return str(PurePosixPath(text))  # without ./, // and a slash at the end


def _command(text: str) -> str:
    """One program and its words: a shell's |, && and > are none of its own."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"a command whose quotes are closed ({error})") from error
    if not words or not text.isprintable():
        raise ValueError("a command on one line, such as python3 live_runner.py --phase paper")
    if {"|", "&&", "||", ";", "&", ">", ">>", "<"} & set(words):
        raise ValueError("one program and its arguments: no shell reads it (write a script for |)")
    return text


def _dotted(text: str) -> str:
    if not _DOTTED.fullmatch(text):
        raise ValueError("a field of a line, such as data.components.ml_bull_prob")
    return text


def _regex(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"a regular expression ({error})") from error
    return text


Relative = Annotated[str, AfterValidator(_relative)]
Command = Annotated[str, AfterValidator(_command)]
Dotted = Annotated[str, AfterValidator(_dotted)]
Variable = Annotated[str, AfterValidator(variable_name)]
Value = Annotated[
    str, matching(re.compile(r"[ -~]{0,1024}"), "printable ASCII on one line, 1024 at most")
]
Word = Annotated[
    str, matching(_WORD, "a name in small letters, digits and _, a letter first, such as lstm_1h")
]


class _Model(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, defer_build=True
    )


class Bound(_Model):
    """What a metric of a training has to be, and whether missing it blocks a release or warns."""

    min: float | None = None
    max: float | None = None
    level: Level = "block"

    @model_validator(mode="after")
    def _one_at_least(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("min or max, or both")
        return self


def _check_metric(text: str) -> None:
    path, sign, rest = text.partition("#")
    _relative(path)
    if not sign or not rest:
        raise ValueError("FILE#/json/pointer, or FILE#regular expression with one group")
    if not rest.startswith("/") and re.compile(_regex(rest)).groups != 1:
        raise ValueError("a regular expression with one group, which holds the number")


class TrainApp(_Model):
    """How the application is trained: commands in order, what they read and what they leave."""

    stages: dict[Word, Command] = Field(min_length=1)
    data: tuple[Relative, ...] = ()
    setup: Relative | None = None
    artefacts: tuple[Relative, ...] = Field(min_length=1)
    metrics: dict[Word, str] = {}
    criteria: dict[Word, Bound] = {}
    env: dict[Variable, Value] = Field(default={}, repr=False)

    @field_validator("metrics")
    @classmethod
    def _where(cls, metrics: dict[str, str]) -> dict[str, str]:
        for name, text in metrics.items():
            try:
                _check_metric(text)
            except ValueError as error:
                raise DeeperError(str(error), name) from error
        return metrics

    @model_validator(mode="after")
    def _of_metrics(self) -> Self:
        for name in sorted(self.criteria.keys() - self.metrics.keys()):
            expected = unknown_name("one of metrics:", self.metrics, name)
            raise DeeperError(expected, "criteria", name, actual=name)
        return self


class Ready(_Model):
    """How one knows that a new process serves. Exactly one of the four is set.

    http: answers 2xx. notify: tells systemd itself (Type=notify). log: a line that the unit writes
    matches. running: it has run for so many seconds.
    """

    http: str = ""
    notify: bool = False
    log: Annotated[str, AfterValidator(_regex)] = ""
    running: Annotated[float, Field(ge=0, le=3600)] = 0

    @model_validator(mode="before")
    @classmethod
    def _a_word(cls, given: Any) -> Any:
        return {"notify": True} if given == "notify" else given

    @field_validator("http")
    @classmethod
    def _on_the_host(cls, url: str) -> str:
        here = _HERE.fullmatch(url)
        if url and not here:
            raise ValueError("an address on the host itself: http://127.0.0.1:PORT/PATH")
        if here and int(here[2]) > _HIGHEST_PORT:
            raise ValueError(f"a port from 1 to {_HIGHEST_PORT}")
        return url

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(map(bool, (self.http, self.notify, self.log, self.running))) != 1:
            raise ValueError("one of http: URL, notify: true, log: REGEX and running: SECONDS")
        return self


class UnitApp(_Model):
    """One process that systemd keeps: its command, and how one knows that it serves."""

    command: Command
    ready: Ready = Field(default={"running": 10}, validate_default=True)


class ServeApp(UnitApp):
    """How the application is served. more: further units of it, by the end of their names."""

    requirements: Relative | None = None
    writes: tuple[Relative, ...] = ()
    env: dict[Variable, Value] = Field(default={}, repr=False)
    more: dict[HostName, UnitApp] = {}

    @field_validator("writes")
    @classmethod
    def _apart(cls, writes: tuple[str, ...]) -> tuple[str, ...]:
        taken = ("releases", "runtimes", "blobs", "bin", "state", "current", "previous", ".env")
        for path in writes:
            if PurePosixPath(path).parts[0] in taken:
                raise ValueError(f"directories of the application; {path} is macd's own there")
            if set("*?[") & set(path):
                raise ValueError(f"directories, not globs: {path}")
            held = [
                other for other in writes if PurePosixPath(path) in PurePosixPath(other).parents
            ]
            if held or writes.count(path) > 1:
                raise ValueError(f"each directory once: {path} is or holds another one of them")
        return writes


class Rate(_Model):
    """The share of lines whose field is as it should be, and what has to be exceeded.

    field: a name in map, or a dotted path. of: the lines that count: all, or those that are good by
    another rate. needs: a finite number, one in [0, 1], or anything but null. min: below 1, which
    no share exceeds.
    """

    field: Dotted
    of: Word = "all"
    needs: Literal["number", "probability", "value"] = "number"
    min: Annotated[float, Field(ge=0, lt=1)]
    level: Level = "block"


class SignalsApp(_Model):
    """Where the application logs what it decides, and what the gate is to read of a line.

    map: a name that the gate knows, or that a rate uses -> the field of a line.
    """

    files: Relative
    level: str = Field(default="SIGNAL", max_length=64)
    map: dict[Word, Dotted] = {}
    rates: dict[Word, Rate] = {}

    @model_validator(mode="after")
    def _known(self) -> Self:
        used = {text for rate in self.rates.values() for text in (rate.field, rate.of)}
        for name in self.map:
            if name not in (*_MAPPED, *used):
                expected = unknown_name("a name that the gate or a rate knows:", _MAPPED, name)
                raise DeeperError(expected, "map", name, actual=name)
        for name, rate in self.rates.items():
            if name in MEANINGS:
                expected = "another name: this one is judged by gate where map has it"
                raise DeeperError(expected, "rates", name, actual=name)
            bases = ["all", *(other for other in (*self.rates, *self.map) if other != name)]
            if rate.of not in (name, *bases):
                expected = unknown_name("one of", bases, rate.of)
                raise DeeperError(expected, "rates", name, "of", actual=rate.of)
            of, seen = rate.of, {name}
            while of in self.rates:
                if of in seen:
                    raise ValueError(f"rates of one another in a circle: {name}, {of}")
                seen.add(of)
                of = self.rates[of].of
        return self


class FlagApp(_Model):
    """The switch that lets the models decide; where: .env, or a drop-in of the unit."""

    name: Variable = "ML_ENABLE_STACKING"
    where: Literal["env", "dropin"] = "env"
    live: Value = "1"
    shadow: Value = "0"

    @model_validator(mode="after")
    def _two(self) -> Self:
        if self.live == self.shadow:
            raise ValueError("two values that differ")
        return self


class OwnApp(_Model):
    """An application of one's own.

    source: its directory here. files: globs of what is released; (): what git tracks. models: globs
    of what git doesn't track and a release needs where no training brings it.
    """

    name: HostName
    source: LocalPath
    files: tuple[Relative, ...] = ()
    models: tuple[Relative, ...] = ()
    train: TrainApp | None = None
    check: Annotated[str, AfterValidator(lambda text: text and _command(text))] = ""
    serve: ServeApp
    signals: SignalsApp | None = None
    flag: FlagApp | None = None
