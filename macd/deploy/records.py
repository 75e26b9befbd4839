"""What the journal here says of deploys and rollbacks: their kinds of records, and how they ended.

Pure, and quick to import: `release.list` and `history` need no host.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from macd.host.record import Record

# The kinds of records that hold what a host reported as live. The guard's watch has an end, too.
ENDS = ("deploy.ended", "rollback.ended")
# Their results where the host reported no end; LEFT: it goes on, and ends the matter by itself.
FAILED, REFUSED, LEFT = "failed", "refused", "left to the host"
NOT_REPORTED = (FAILED, REFUSED, LEFT)
_BEGINS = ("deploy.began", "rollback.began")


def may_be_live(records: Iterable[Record], host: str) -> int:
    """The highest serial that what was recorded here may have left live on `host`; 0: none.

    The host's newest report counts, and every release since whose deploy (or rollback) started and
    whose end the host did not report: it failed silently, or the operator was killed. Where the
    host reported a release whose serial is not recorded here, the serial before still counts.
    """
    serials: dict[str, int] = {}
    live = 0
    since: list[int] = []
    for record in records:
        fields = record.fields
        if isinstance(serial := fields.get("serial"), int) and "release" in fields:
            serials[fields["release"]] = serial
        if fields.get("host") != host:
            continue
        if record.kind in _BEGINS:
            goes_to = fields.get("release") or fields.get("to") or ""
            since.append(serials.get(goes_to, 0))
        elif record.kind in ENDS and fields.get("result") not in NOT_REPORTED:
            release = fields.get("live")
            live = serials.get(release, live) if release else 0
            since.clear()
        elif record.kind in ENDS and fields.get("unreachable") and since:
            since.pop()  # it was never asked
    return max([live, *since])
