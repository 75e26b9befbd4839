"""Have the live release repeat the bars that it served, and say whether it says the same again.

The service's lines are pulled as for the gate. Final bars come from the exchange, from the feed's
own files on the host, or from a directory here. The release's own code answers on the host, in the
service's sandbox. What is equal is decided in replay.py. The result lies in
state_dir/audit/<host>/<moment>/ and is no evidence that allows anything: the gate only shows it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from macd import application
from macd.application import BUILTIN
from macd.deploy import state
from macd.deploy.state import HostState
from macd.errors import ExitCode, MacdError, RefusedError
from macd.gate import evidence, logs, replay
from macd.gate.replay import Case, Key, Outcome, Rows, Said, Values, Written
from macd.host import logname
from macd.host.durable import replace_file
from macd.host.judge import by_symbol
from macd.host.judge.parse import clean, step_ms
from macd.host.judge.reading import raw_lines
from macd.host.record import canonical
from macd.inventory import Host, Inventory
from macd.ssh.session import Session, open_session

KIND, NAME, BARS = "replay-audit", "audit.json", "bars"
_KEPT = 50
_MOST_NEEDED = 100_000  # bars; what a host says is not believed blindly
_AT_ONCE = 100  # lines in one question: two answers of up to 5 kB each; a sandbox prints 1 MiB
_BEHIND = 10  # bars behind the last line: they show that final bars reach it
_SPARE = 100  # bars more than a service needs: some of them may never have come to it
Report = Callable[[str], None]


@dataclass(frozen=True)
class Audit:
    """A stored audit. path: of its document."""

    document: Mapping[str, Any]
    path: Path


@dataclass(frozen=True)
class _Watched:
    """What the live service says of itself, by its settings and its release's code."""

    release: str
    symbol: str
    cross: tuple[str, ...]
    tf: str
    need: int
    feed: Mapping[str, Any]
    served: tuple[str, ...] = ()  # all symbols, where the service has several

    @property
    def symbols(self) -> tuple[str, ...]:
        return (self.symbol, *self.cross)

    @property
    def step(self) -> int:
        return step_ms(self.tf)


def of_host(
    inventory: Inventory,
    host: Host,
    days: float,
    *,
    bars: Path | None = None,
    symbol: str = "",
    report: Report,
) -> Audit:
    """Repeat what the live release of `host` wrote in the last `days`.

    Args:
        bars: a directory here that holds the final bars; else they come from where the service's
            own bars come from.
        symbol: of a service that has several; "" for its first.
        report: takes a line about what goes on.

    Raises:
        MacdError: nothing is live, its release can't repeat bars (exit code INCONCLUSIVE), there
            are no bars, or its code gives no answer.
    """
    if (app := application.of(inventory)).feed is None:
        raise RefusedError(
            f"there is no audit of {app.name}",
            why="an audit has the live release repeat what it said, on final bars; macd does not "
            "know how code of your own computes that",
            live="nothing was changed",
            hint="invoke shadow-gate judges what it wrote",
        )
    with open_session(host, inventory) as session:
        live = state.observed(state.ask(session, host, inventory))
        _refuse(host, live)
        copy = logs.pull(session, host.app_dir, logs.logs_of(inventory, host))
        now = datetime.fromtimestamp(session.clock.offset + datetime.now(UTC).timestamp(), UTC)
        made = directory_of(inventory, host.name, now)
        release = _Release(session, host, str(live.live), symbol)
        watched = release.watched(live)
        if bars is None:
            watched = _with_our_exchange(watched, inventory, host)
        written = _written(copy, watched, now, days)
        source = _Source(release, watched, bars, made / BARS, report)
        outcomes, corrected, golden = _replayed(release, watched, written, source, report)
    document = {
        "kind": KIND,
        "version": 1,
        "host": host.name,
        "env": host.env,
        "inventory": inventory.name,
        "release": live.live,
        "made": now.isoformat(),
        "days": days,
        "symbol": watched.symbol,
        "served": list(watched.served),
        "cross": list(watched.cross),
        "tf": watched.tf,
        "source": source.name,
        "golden": golden,
        **replay.summary(outcomes, written.left_out, corrected),
    }
    path = made / NAME
    made.mkdir(parents=True, exist_ok=True)
    replace_file(path, canonical(document) + b"\n")
    _prune(inventory, host.name)
    return Audit(document, path)


def newest(inventory: Inventory, host: str, release: str | None) -> Mapping[str, Any] | None:
    """The newest audit of that release on a host; None where there is none that can be read."""
    for path in sorted((inventory.state_dir / "audit" / host).glob(f"*/{NAME}"), reverse=True):
        try:
            document = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue
        sound = isinstance(document, dict) and document.get("kind") == KIND
        if sound and document.get("release") == release:
            return dict(document)
    return None


def for_gate(document: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What a gate report shows of an audit; `bars` are the lines that were compared."""
    if document is None:
        return None
    names = ("share_equal", "equal", "explained", "different", "made", "days", "corrected_bars")
    more = ("first_difference", "symbol", "served")
    return {
        "bars": document.get("compared"),
        **{name: document.get(name) for name in (*names, *more)},
    }


def answers(details: Mapping[str, Any]) -> bool:
    """Whether a release of these details can repeat its bars."""
    return details.get("replay") == BUILTIN.replay


def notes(
    shown: Mapping[str, Any] | None, release: str | None, details: Mapping[str, Any]
) -> list[str]:
    """What a gate report warns of: no audit of this release, or lines that were not equal."""
    if release is None:
        return []
    if not answers(details):
        return ["its bars can't be audited: the release was made by an earlier version"]
    if shown is None or not shown["bars"]:
        return ["no audit of this release compared a line: invoke audit repeats its bars"]
    if shown["equal"] == shown["bars"]:
        return []
    words = f"the audit of {str(shown['made'])[:16]} found {shown['equal']} of {shown['bars']}"
    words += " lines equal on final bars"
    if shown["explained"]:
        words += f", {shown['explained']} more on the bars of then (corrected later)"
    if shown["different"]:
        words += f"; {shown['different']} differ and nothing explains it: invoke audit"
    return [words]


def directory_of(inventory: Inventory, host: str, made: datetime) -> Path:
    """Where the audit of that moment goes."""
    return inventory.state_dir / "audit" / host / f"{made:%Y%m%dT%H%M%S.%fZ}"


def _prune(inventory: Inventory, host: str) -> None:
    there = sorted(path.parent for path in (inventory.state_dir / "audit" / host).glob("*/*"))
    for old in list(dict.fromkeys(there))[:-_KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def _refuse(host: Host, live: HostState) -> None:
    if live.live is None:
        raise MacdError(
            f"{host.name}: no release is live, so there is nothing to repeat",
            hint=f"invoke deploy --env {host.env}",
            exit_code=ExitCode.INCONCLUSIVE,
        )
    if not answers(live.details):
        raise MacdError(
            f"{host.name}: release {live.live} can't repeat its bars",
            why="it was made by a version that had no such command",
            live=f"{live.live}, as before",
            hint="invoke release, then invoke deploy: its bars can be audited from then on",
            exit_code=ExitCode.INCONCLUSIVE,
        )


class _Release:
    """The live release as it answers on its host: see macd/app/service/replay.py."""

    def __init__(self, session: Session, host: Host, identifier: str, symbol: str = "") -> None:
        self._session, self._host, self.id, self._symbol = session, host, identifier, symbol

    def ask(self, question: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The answer's documents, at least one. What they hold was written by a host."""
        question = {**question, **({"symbol": self._symbol} if self._symbol else {})}
        answer = self._session.call(
            "replay",
            app=self._host.app_dir,
            unit=f"{self._host.unit}.service",
            scope=self._host.scope,
            release=self.id,
            question=json.dumps(question, separators=(",", ":")).encode(),
        )
        try:
            said = bytes(answer["said"]).decode().splitlines()
            # A library may have printed something of its own between.
            documents = [json.loads(line) for line in said if line.startswith("{")]
            sound = answer["code"] == 0 and documents and all(type(d) is dict for d in documents)
        except (ValueError, TypeError, RecursionError):
            sound, documents = False, []
        if not sound:
            raise MacdError(
                f"{self._host.name}: the release's own code gave no answer",
                why=clean(str(answer.get("complained") or "it printed no JSON").strip()[-300:]),
                live=f"{self.id}, as before",
                hint="invoke doctor runs its check and shows more",
            )
        return documents

    def watched(self, live: HostState) -> _Watched:
        """Raises MacdError when its settings can't be read."""
        facts = self.ask({"ask": "facts"})[0]
        if self._symbol and facts.get("symbol") != self._symbol:
            raise RefusedError(f"{self._host.name}: the service has no symbol {self._symbol}")
        try:
            feed = dict(json.loads(live.service_settings or "{}")["feed"])
            if not (0 < int(facts["need"]) <= _MOST_NEEDED and step_ms(str(facts["tf"]))):
                raise ValueError(f"{facts['need']} bars of {facts['tf']}")
            return _Watched(
                self.id,
                str(facts["symbol"]),
                tuple(str(name) for name in facts["cross"]),
                str(facts["tf"]),
                int(facts["need"]),
                feed,
                by_symbol.served(live.service_settings),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise MacdError(
                f"{self._host.name}: the service's settings can't be read",
                why=f"{type(error).__name__}: {error}",
                hint="invoke provision writes service.json",
            ) from error


class _Source:
    """Where final bars come from. name: for people."""

    def __init__(
        self, release: _Release, watched: _Watched, here: Path | None, place: Path, report: Report
    ) -> None:
        self._release, self._watched, self._report = release, watched, report
        self._here, self._place = here, place
        feed = watched.feed
        if here is not None:
            self.name = f"the directory {here}"
        elif feed.get("kind") == "ccxt":
            self.name = f"{feed.get('exchange')}, as it gives them now"
        else:
            self.name = f"the {feed.get('kind')} feed's files on the host"

    def ready(self, first_ms: int) -> None:
        """Fetch what is fetched at once: the bars of an exchange, from `first_ms` on."""
        feed, watched = self._watched.feed, self._watched
        if self._here is not None or feed.get("kind") != "ccxt":
            return
        since = datetime.fromtimestamp(first_ms / 1000, UTC)
        self._report(f"fetching {', '.join(watched.symbols)} from {feed.get('exchange')}")
        application.fetch_final(
            str(feed.get("exchange")),
            str(feed.get("api_url") or ""),
            watched.symbols,
            watched.tf,
            since,
            self._place,
            self._report,
        )
        self._here = self._place

    def bars(self, first: int, last: int, before: int) -> dict[str, Rows]:
        """By symbol the bars from `first` to `last`, and `before` earlier ones."""
        if self._here is None:
            asked = {"ask": "bars", "from": first, "to": last, "before": before}
            given = self._release.ask(asked)[0].get("bars") or {}
        else:
            given = {
                symbol: self._stored(self._here, symbol, (first, last, before))
                for symbol in self._watched.symbols
            }
        try:
            return {
                symbol: {int(row[0]): tuple(map(float, row[1:6])) for row in given[symbol]}
                for symbol in self._watched.symbols
            }
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            raise MacdError("the final bars can't be read", why=str(error)) from error

    def _stored(self, place: Path, symbol: str, span: tuple[int, int, int]) -> list[list[float]]:
        try:
            return application.stored_rows(place, symbol, self._watched.tf, *span)
        except MacdError:
            if symbol == self._watched.symbol:
                raise
            return []  # the service goes on without a cross symbol, too


def _with_our_exchange(watched: _Watched, inventory: Inventory, host: Host) -> _Watched:
    """The same with the inventory's exchange: no host names the address that is asked from here.

    Raises MacdError where the host's service has another one.
    """
    ours = inventory.service.feed
    theirs = watched.feed.get("kind"), watched.feed.get("exchange")
    if theirs[0] != "ccxt":
        return watched
    if theirs != (ours.kind, ours.exchange):
        raise MacdError(
            f"{host.name}: its service has another feed than the inventory says",
            why=clean(f"there {theirs[1]}, in {inventory.path.name} {ours.kind} {ours.exchange}"),
            hint="invoke plan shows the difference; --bars DIR names final bars of the host's feed",
            exit_code=ExitCode.INCONCLUSIVE,
        )
    return replace(watched, feed=ours.model_dump(mode="json"))


def _written(copy: logs.Pulled, watched: _Watched, now: datetime, days: float) -> Written:
    """The release's lines of the last `days`, read with as many before as a bar depends on."""
    start = now - timedelta(days=days)
    memory = timedelta(milliseconds=watched.step * (watched.need + _SPARE))
    raws = (
        raw
        for source in evidence.choose(copy, start - memory)
        if logname.writer_of(source.name) in ("", watched.symbol)  # others' feeds are not its own
        for raw in raw_lines(source.path, 0, source.size)
    )
    return replay.read(
        raws,
        release=watched.release,
        symbol=watched.symbol,
        tf=watched.tf,
        since_ms=round(start.timestamp() * 1000),
    )


def _replayed(
    release: _Release, watched: _Watched, written: Written, source: _Source, report: Report
) -> tuple[list[Outcome], dict[Key, tuple[Values, Values]], Mapping[str, Any] | None]:
    """Each line's outcome, the corrected bars as used and as they are, the golden predictions."""
    outcomes: list[Outcome] = []
    corrected: dict[Key, tuple[Values, Values]] = {}
    golden = None
    lines = sorted(written.lines, key=lambda line: (line.bar_ms, line.seq))
    if not lines:
        return outcomes, corrected, golden
    source.ready(lines[0].bar_ms - watched.step * (watched.need + _SPARE))
    for number, part in enumerate(_parts(lines, watched.step)):
        if number:
            report(f"{len(outcomes):,} of {len(lines):,} lines compared")
        last = part[-1].bar_ms + _BEHIND * watched.step
        finals = source.bars(part[0].bar_ms, last, watched.need + _SPARE)
        doubtful = written.doubtful(finals, part)
        asked: list[tuple[Said, Case, Case]] = []
        for line in part:
            first = replay.first_needed(line, finals[watched.symbol], watched.need)
            if first is None or not replay.covered(line, watched.symbol, finals):
                written.left_out["the final bars do not reach it, or begin too late"] += 1
                continue
            asked.append((line, *replay.cases(written, line, finals, doubtful, first)))
        if not asked:
            continue
        head, answers = _ask(release, finals, [case for _, *pair in asked for case in pair])
        golden = _golden(head.get("golden"))
        listed = head.get("features")
        names = [str(name) for name in listed] if isinstance(listed, list) else []
        for line, final, seen in asked:
            said, had = (_fields(answers, case) for case in (final, seen))
            outcomes.append(
                replay.outcome(
                    line,
                    replay.differences(line.fields, said, names),
                    replay.differences(line.fields, had, names),
                    seen.corrected,
                )
            )
            for symbol, ms in seen.corrected:
                was, now = written.had(line, symbol, ms, None), finals[symbol].get(ms)
                if was is not None and now is not None:
                    corrected.setdefault((symbol, ms), (was, now))
    return outcomes, corrected, golden


def _golden(said: Any) -> dict[str, Any]:
    given = said if isinstance(said, dict) else {}
    return {"ok": given.get("ok") is True, "detail": clean(str(given.get("detail")))}


def _fields(answers: Mapping[str, Mapping[str, Any]], case: Case) -> Mapping[str, Any]:
    fields = answers[case.key].get("fields")
    return fields if isinstance(fields, dict) else {}


def _ask(
    release: _Release, finals: Mapping[str, Rows], wanted: Sequence[Case]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The head of the answer, and by case what the release says."""
    different = list({case.key: case for case in wanted}.values())
    head, *answers = release.ask(
        {
            "ask": "predict",
            "bars": {
                symbol: [[ms, *values] for ms, values in rows.items()]
                for symbol, rows in finals.items()
            },
            "cases": [case.document() for case in different],
        }
    )
    if len(answers) != len(different):
        raise MacdError(
            "the release's own code did not answer for every bar",
            why=f"{len(answers)} answers to {len(different)} questions",
            hint="invoke doctor runs its check and shows more",
        )
    return head, {case.key: answer for case, answer in zip(different, answers, strict=True)}


def _parts(lines: Sequence[Said], step: int) -> Iterator[list[Said]]:
    """Lines of neighbouring bars, as many as one question may hold."""
    part: list[Said] = []
    for line in lines:
        far = part and line.bar_ms - part[-1].bar_ms > _AT_ONCE * step
        if part and (far or len(part) == _AT_ONCE):
            yield part
            part = []
        part.append(line)
    if part:
        yield part
