"""What was live at a moment, by one journal or several; what can't all be true is named."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macd.deploy import past
from macd.deploy.past import Then
from macd.host.record import Record

DAY = datetime(2026, 11, 28, tzinfo=UTC)
R1, R2 = "20261101T000000Z-aaaaaaaa", "20261102T000000Z-bbbbbbbb"
Event = tuple[float, str, dict[str, Any]]


def journal(*events: Event) -> list[Record]:
    return [
        Record(seq, DAY + timedelta(hours=hour), kind, fields, "", "")
        for seq, (hour, kind, fields) in enumerate(events, 1)
    ]


def ended(hour: float, release: str, number: int, host: str = "prod", **more: Any) -> Event:
    fields = {"host": host, "env": "prod", "release": release, "number": number, "who": "ann"}
    return hour, "deploy.ended", {**fields, "result": "committed", "live": release, **more}


def flag(hour: float, kind: str, value: str, weight: int, **more: Any) -> Event:
    fields = {"host": "prod", "value": value, "weight": weight, "result": "set", "report": ""}
    return hour, f"flag.{kind}", {**fields, **more}


STORY = journal(
    ended(1, R1, 1),
    (2, "gate.judged", {"host": "prod", "verdict": "PASS", "report": "gate/prod/x/report.json"}),
    flag(3, "enable", "1", 25, report="/s/gate/prod/x/report.json"),
    (4, "guard.raised", {"host": "prod", "weight": 100}),
    (5, "deploy.began", {"host": "prod", "release": R2, "who": "ben"}),
    ended(6, R2, 2, who="ben"),
    (7, "deploy.began", {"host": "prod", "release": R1, "who": "ben"}),
    ended(8, R1, 3, result="reverted", live=R2),
    flag(9, "enable", "1", 100),
    (10, "guard.ended", {"host": "prod", "result": "failed", "ended": "2026-11-28T09:30:00+00:00"}),
)


def then(hour: float, journals: dict[str, Iterable[Record]] | None = None) -> Then:
    entries = past.joined(journals or {"here": STORY})
    (state,) = past.at(entries, DAY + timedelta(hours=hour))
    return state


@pytest.mark.parametrize(
    ("hour", "release", "weight", "verdict", "under_way"),
    [
        (1.5, R1, 0, "", False),
        (3.5, R1, 25, "PASS", False),
        (4.5, R1, 100, "PASS", False),
        (5.5, R1, 100, "PASS", True),
        (6.5, R2, 0, "", False),
        (7.5, R2, 0, "", True),
        (8.5, R2, 0, "", False),
        (9.2, R2, 100, "", False),
        (9.6, R2, 0, "", False),  # the guard ended before it was written down here
    ],
)
def test_one_journal(hour: float, release: str, weight: int, verdict: str, under_way: bool) -> None:
    state = then(hour)
    assert (state.release, state.weight, state.verdict) == (release, weight, verdict)
    assert bool(state.under_way) is under_way
    assert (state.by, state.how) == ("ann" if release == R1 else "ben", "deploy")


ENABLED = flag(2, "enable", "1", 25, report="r")
PUT_BACK = {"host": "prod", "was": "1", "was_weight": 25, "wanted": "1", "reason": "it hangs"}


@pytest.mark.parametrize(
    ("event", "weight", "evidence"),
    [
        (flag(3, "disable", "0", 0), 0, ""),
        (flag(3, "disable", "0", 0, result="refused"), 25, "r"),
        ((3, "flag.reverted", PUT_BACK), 25, "r"),  # a raise that failed
        ((3, "flag.reverted", {**PUT_BACK, "was": "0"}), 0, ""),
        ((3, "guard.ended", {"host": "prod", "result": "over"}), 25, "r"),
        ((3, "guard.ended", {"host": "prod", "result": "failed"}), 0, ""),
        ((3, "guard.failed", {"host": "prod"}), 0, ""),
        # seen by this machine a day later
        (
            (30, "guard.raised", {"host": "prod", "weight": 50, "at": "2026-11-28T03:00:00Z"}),
            50,
            "r",
        ),
    ],
)
def test_what_a_flag_or_the_guard_did_counts_from_then_on(
    event: Event, weight: int, evidence: str
) -> None:
    """At that very moment, too."""
    records = {"here": journal(ended(1, R1, 1), ENABLED, event)}
    assert then(2, records).weight == then(2.9, records).weight == 25
    state = then(3, records)
    assert (state.weight, state.evidence) == (weight, evidence)


def test_who_brought_the_last_release_is_not_said_of_the_next() -> None:
    """A host records its commits without a name."""
    own = journal((3, "committed", {"activation": 2, "release": R2}))
    entries = past.joined({"here": journal(ended(1, R1, 1)), "prod": own}, ["prod"])
    (state,) = past.at(entries, DAY + timedelta(hours=4))
    assert (state.release, state.by, state.how) == (R2, "", "")


def test_an_application_without_weights_has_none() -> None:
    records = journal(ended(1, R1, 1), flag(2, "enable", "1", 100, weighed=False))
    assert not then(3, {"here": records}).weighed
    assert then(3, {"here": journal(ended(1, R1, 1), flag(2, "enable", "1", 100))}).weighed


@pytest.mark.parametrize(
    ("more", "weighed"),
    [
        ({"flag": "ML_ENABLE_STACKING"}, True),
        ({"flag": "ML_ENABLE_STACKING", "weighed": False}, False),
        ({"flag": "USE_STACK"}, False),  # of a host that did not say yet whether it knows weights
    ],
)
def test_a_hosts_own_journal_says_whether_there_are_weights(
    more: dict[str, str], weighed: bool
) -> None:
    fields = {"wanted": "1", "weight": 100, "release": R1, "report": "abc", **more}
    own = journal((1, "committed", {"activation": 1, "release": R1}), (3, "flag.set", fields))
    (state,) = past.at(past.joined({"prod": own}, hosts=["prod"]), DAY + timedelta(hours=4))
    assert (state.weight, state.weighed) == (100, weighed)


def test_before_the_first_record_no_host_is_known() -> None:
    assert past.at(past.joined({"here": STORY}), DAY) == []
    training = journal((1, "train.started", {"host": "h800", "run": "r"}))
    assert past.at(past.joined({"here": training}), DAY + timedelta(hours=2)) == []


def test_a_hosts_own_journal_says_the_same() -> None:
    own = journal(
        (1, "committed", {"activation": 1, "release": R1}),
        (3, "flag.set", {"wanted": "1", "weight": 25, "release": R1, "report": "abc"}),
        (5, "switching", {"activation": 2, "release": R2}),
        (6, "committed", {"activation": 2, "release": R2}),
    )
    entries = past.joined({"prod": own}, hosts=["prod"])
    (state,) = past.at(entries, DAY + timedelta(hours=4))
    assert (state.release, state.weight, state.evidence) == (R1, 25, "abc")
    (state,) = past.at(entries, DAY + timedelta(hours=5.5))
    assert (state.release, bool(state.under_way)) == (R1, True)
    (state,) = past.at(entries, DAY + timedelta(hours=7))
    assert (state.release, state.weight) == (R2, 0)


def test_a_hosts_own_record_names_the_report_that_was_made_elsewhere() -> None:
    sha256 = "ab" * 32
    made = {"host": "prod", "verdict": "PASS", "report": "gate/prod/x/report.json"}
    here = journal((2, "gate.judged", {**made, "report_sha256": sha256}))
    enabled = {"wanted": "1", "weight": 25, "release": R1, "report": sha256}
    own = journal((1, "committed", {"activation": 1, "release": R1}), (3, "flag.set", enabled))
    for journals, evidence, verdict in (
        ({"here": here, "prod": own}, "gate/prod/x/report.json", "PASS"),
        ({"prod": own}, sha256, ""),
    ):
        (state,) = past.at(past.joined(journals, ["prod"]), DAY + timedelta(hours=4))
        assert (state.weight, state.evidence, state.verdict) == (25, evidence, verdict)


@pytest.mark.parametrize("weight", [100, 10])
def test_who_changes_the_weight_without_a_report_leaves_what_allowed_it(weight: int) -> None:
    """The guard raises by its own watch, and a lower weight needs no report."""
    enabled = {"wanted": "1", "weight": 25, "release": R1, "report": "abc"}
    own = journal(
        (1, "committed", {"activation": 1, "release": R1}),
        (3, "flag.set", enabled),
        (4, "flag.set", {**enabled, "weight": weight, "report": "", "who": "guard"}),
    )
    (state,) = past.at(past.joined({"prod": own}, ["prod"]), DAY + timedelta(hours=5))
    assert (state.weight, state.evidence) == (weight, "abc")
    here = journal(
        ended(1, R1, 1),
        flag(3, "enable", "1", 25, report="abc"),
        flag(4, "enable", "1", weight),
    )
    assert then(5, {"here": here}).evidence == "abc"


LEFT: Event = (2, "deploy.ended", {"host": "prod", "release": R2, "result": "left to the host"})


def test_what_is_left_to_the_host_goes_on_until_the_host_or_an_attach_says_how_it_ended() -> None:
    story = [ended(1, R1, 1), (1.8, "deploy.began", {"host": "prod", "release": R2}), LEFT]
    state = then(2.5, {"here": journal(*story)})
    assert state.release == R1
    assert "contact was given up" in state.under_way
    state = then(4, {"here": journal(*story, ended(3, R2, 2, attached=True))})
    assert (state.release, state.under_way) == (R2, "")
    own = journal((1, "committed", {"release": R1}), (1.9, "committed", {"release": R2}))
    entries = past.joined({"here": journal(*story), "prod": own}, ["prod"])
    (state,) = past.at(entries, DAY + timedelta(hours=4))
    assert (state.release, state.under_way) == (R2, "")
    assert past.contradictions(entries) == []


def test_two_operators_make_one_history() -> None:
    ann, ben = journal(ended(1, R1, 1)), journal(ended(2, R2, 2, who="ben"))
    assert then(1.5, {"ann": ann, "ben": ben}).release == R1
    state = then(2.5, {"ann": ann, "ben": ben})
    assert (state.release, state.by, state.sources) == (R2, "ben", ("ann", "ben"))
    assert past.contradictions(past.joined({"ann": ann, "ben": ben})) == []


def test_what_can_not_all_be_true_is_named() -> None:
    made = {"env": "prod", "serial": 7}
    ann = journal(ended(1, R1, 1), ended(5, R2, 3), (6, "release.made", {**made, "release": R1}))
    ben = journal(
        ended(1, R2, 1),
        ended(4, R1, 4),
        (6, "release.made", {**made, "release": R2}),
    )
    contradictions = past.contradictions(past.joined({"ann": ann, "ben": ben}))
    assert len(contradictions) == 3
    assert (
        f"activation 1 on prod: ann says {R1} committed; ben says {R2} committed"
        in contradictions[0]
    )
    assert "serial 7 of prod was given to several releases" in contradictions[1]
    assert "the clocks of ben and ann: they differ by 3600 s or more" in contradictions[2]


def test_who_attached_later_contradicts_nobody() -> None:
    ann = journal(ended(1, R1, 1), ended(2, R2, 2))
    ben = journal(ended(9, R1, 1, attached=True))
    assert past.contradictions(past.joined({"ann": ann, "ben": ben})) == []


def chained(*events: Event, after: Sequence[Record] = ()) -> list[Record]:
    """As `journal`, each with the hash of the one before; it goes on behind `after`."""
    records = list(after)
    for hour, kind, fields in events:
        prev = records[-1].hash if records else "0" * 64
        seal = hashlib.sha256(f"{prev}{hour}{kind}{fields}".encode()).hexdigest()
        when = DAY + timedelta(hours=hour)
        records.append(Record(len(records) + 1, when, kind, fields, prev, seal))
    return records


def test_a_copy_of_a_journal_counts_once_and_one_that_was_written_to_is_named() -> None:
    first = chained(ended(1, R1, 1))
    ann, older = chained(ended(2, R2, 2), after=first), first
    entries = past.joined({"here": ann, "backup": older})
    assert [(entry.source, entry.record.seq) for entry in entries] == [("here", 1), ("here", 2)]
    assert past.contradictions(entries) == []
    other = chained(ended(3, R1, 3), after=first)
    (contradiction,) = past.contradictions(past.joined({"here": ann, "backup": other}))
    assert "backup and here are one journal up to record 1 and differ from then on" in contradiction


def test_activations_that_nobody_here_tells_of_are_missing() -> None:
    ann, ben = journal(ended(1, R1, 1)), journal(ended(5, R2, 4), ended(6, R2, 2, host="b"))
    entries = past.joined({"ann": ann, "ben": ben})
    (gap,) = past.missing(entries)
    assert gap.startswith("prod: nothing tells of activation 2, 3: ")
    own = journal((2, "committed", {"activation": 2}), (3, "reverted", {"activation": 3}))
    assert past.missing(past.joined({"ann": ann, "ben": ben, "prod": own}, ["prod"])) == []


def test_a_flag_for_a_release_that_was_not_live_contradicts() -> None:
    ann = journal(ended(1, R1, 1), ended(2, R2, 2))
    ben = journal(flag(3, "enable", "1", 100, release=R1))
    (contradiction,) = past.contradictions(past.joined({"ann": ann, "ben": ben}))
    assert f"prod: ben let {R1} decide on 2026-11-28 03:00:00 UTC" in contradiction
    assert f"when {R2} was live by ann" in contradiction
    ben = journal(flag(3, "enable", "1", 100, release=R2))
    assert past.contradictions(past.joined({"ann": ann, "ben": ben})) == []


FIELDS = st.dictionaries(
    st.sampled_from(
        ["host", "release", "live", "number", "result", "weight", "value", "ended", "serial", "env"]
    ),
    st.none() | st.integers() | st.text(max_size=5) | st.just("prod") | st.just("committed"),
)
KINDS = st.sampled_from([r.kind for r in STORY] + ["committed", "flag.set", "release.made", "x"])


@given(st.lists(st.tuples(st.floats(0, 9), KINDS, FIELDS), max_size=12))
def test_no_record_ends_in_an_exception(events: list[Event]) -> None:
    entries = past.joined({"a": journal(*events), "b": STORY})
    past.at(entries, DAY + timedelta(hours=5))
    past.contradictions(entries)
    past.missing(entries)
