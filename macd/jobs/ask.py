"""Ask a host about one run, or to stop it; a host that can't be reached is LOST CONTACT."""

from __future__ import annotations

from typing import Any

from macd.errors import ContactLostError, MacdError
from macd.jobs.contact import Contact
from macd.jobs.follow import decode

_STOPPED_S = 60.0


def status_of(contact: Contact, run: str) -> dict[str, Any]:
    """How a run stands ("": the newest), as its host sees it."""
    return _asked(contact, "job_status", run, log_tail=8192)


def events_of(contact: Contact, run: str) -> list[dict[str, Any]]:
    """What a run has told so far."""
    data = b""
    while piece := _asked(contact, "job_follow", run, offset=len(data))["data"]:
        data += piece
    return decode(data)


def _asked(contact: Contact, op: str, run: str, **args: Any) -> dict[str, Any]:
    work = contact.host.work_dir
    try:
        told: dict[str, Any] = contact.use(
            lambda session: session.call(op, work=work, run=run, **args)
        )
    except MacdError as error:
        raise as_lost(error, run) from error
    return told


def stop(contact: Contact, run: str) -> dict[str, Any]:
    """Ask a run to stop and wait until it is over."""
    _asked(contact, "job_cancel", run)
    until = contact.clock() + _STOPPED_S
    while (told := status_of(contact, run))["state"] == "RUNNING":
        if contact.clock() > until:
            raise MacdError(
                f"run {run} does not end",
                why=f"it was asked to {_STOPPED_S:.0f} s ago, and killed after 20 s",
                live="it may hang in the kernel, on a disk or a GPU",
                hint=f"invoke train.status --run {run}; on the host: ps, nvidia-smi",
            )
        contact.sleep(0.3)
    return told


def as_lost(error: MacdError, run: str) -> MacdError:
    """An unreachable host leaves the run's state unknown: that is LOST CONTACT, not FAILED."""
    from macd.ssh.refusals import UnreachableError  # noqa: PLC0415 - paramiko is slow to import

    if not isinstance(error, ContactLostError | UnreachableError):
        return error
    named = f"run {run}" if run else "what runs there"
    return ContactLostError(
        f"LOST CONTACT: {error.what.removeprefix('LOST CONTACT ')}",
        why=error.why,
        live=f"{named} goes on without us, or is over; that is not known here",
        hint=error.hint or "try again; train.attach goes on where it was",
    )
