"""The operator's record of what was done here: when damaged, it waits for a person.

The file is the host's (macd/host/record.py says what a record and a torn tail are). Here damage is
reported with the record's number, and nothing is added until it is settled. `repair_torn` moves a
torn tail aside, after somebody asked for it. Anything else is never repaired or extended.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from macd.errors import MacdError, RefusedError
from macd.host import durable, record
from macd.host.record import Record

_LOCK_WAIT_S = 30.0


class JournalError(MacdError):
    """The journal is torn or was changed. `intact` are the records before the damage."""

    def __init__(self, path: Path, damage: record.Damage, intact: list[Record]) -> None:
        number, torn = damage.record, damage.torn
        last = f"records 1 to {number - 1} are intact" if number > 1 else "no record before it"
        super().__init__(
            f"the journal is {'torn' if torn else 'damaged'} at record {number}",
            why=f"{damage.reason}\n{path}",
            live=f"{last}; nothing is added until this is settled",
            hint="invoke history --repair-torn  moves the unfinished line aside, after showing it"
            if torn
            else "compare it with a backup and find out who wrote to it; to go on without it, "
            f"move it away by hand: mv {path} {path}.damaged",
        )
        self.record = number
        self.reason = damage.reason
        self.intact = intact
        self.torn = torn


@dataclass(frozen=True)
class Journal:
    """The journal at `path`; made, with its directories, by the first append."""

    path: Path

    def append(self, kind: str, fields: dict[str, Any], *, now: datetime) -> Record:
        """Add a record and return it once it is durable; safe beside other processes.

        `now` must carry a timezone. Raises JournalError if the journal is torn or damaged (it is
        never extended then), MacdError if the disk refuses, RefusedError if another process holds
        the lock for 30 s, TypeError or ValueError for fields that JSON can't hold.
        """
        with self._opened(os.O_RDWR | os.O_APPEND | os.O_CREAT, fcntl.LOCK_EX) as descriptor:
            records = self._parse(record.read_all(descriptor))
            return self._write(descriptor, records, kind, fields, now)

    def records(self) -> list[Record]:
        """Every record, oldest first. Raises JournalError if the journal is torn or damaged."""
        if not self.path.exists():
            return []
        with self._opened(os.O_RDONLY, fcntl.LOCK_SH) as descriptor:
            data = record.read_all(descriptor)
        return self._parse(data)

    def repair_torn(self, *, now: datetime) -> Path | None:
        """Move a torn tail to a file beside the journal and record that; None if nothing is torn.

        Raises JournalError for any other damage, which stays as it is.
        """
        if not self.path.exists():
            return None
        with self._opened(os.O_RDWR | os.O_APPEND, fcntl.LOCK_EX) as descriptor:
            data = record.read_all(descriptor)
            records, damage = record.parse(data)
            if damage is None:
                return None
            if not damage.torn:
                raise JournalError(self.path, damage, records)
            keep, infix = len(data) - len(damage.torn), f"torn-{damage.record}"
            aside, fields = record.move_aside(descriptor, str(self.path), damage.torn, keep, infix)
            self._write(descriptor, records, record.TORN_MOVED, fields, now)
        return Path(aside)

    @contextlib.contextmanager
    def _opened(self, flags: int, how: int) -> Iterator[int]:
        try:
            if flags & os.O_CREAT:
                durable.make_directories(str(self.path.parent))
            descriptor = os.open(self.path, flags, 0o644)
        except OSError as error:
            raise MacdError(
                "the journal can't be opened", why=str(error), hint=f"ls -l {self.path}"
            ) from error
        try:
            with record.locked(descriptor, how, _LOCK_WAIT_S):
                yield descriptor
        except TimeoutError:
            raise RefusedError(
                "another process holds the journal",
                why=f"it is locked for over {_LOCK_WAIT_S:g} s: {self.path}",
                hint=f"fuser -v {self.path}  names the process",
            ) from None

    def _parse(self, data: bytes) -> list[Record]:
        records, damage = record.parse(data)
        if damage is not None:
            raise JournalError(self.path, damage, records)
        return records

    def _write(
        self,
        descriptor: int,
        records: list[Record],
        kind: str,
        fields: dict[str, Any],
        now: datetime,
    ) -> Record:
        last = record.last_of(records)
        try:
            return record.write(descriptor, str(self.path), last, kind, fields, now)
        except OSError as error:
            raise MacdError(
                "the journal could not be written",
                why=f"{error}\n{self.path}",
                hint="free space or repair the disk, then run the command again",
            ) from error
