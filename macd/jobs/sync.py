"""Bring an order's files to the host and start it there; both may be repeated after a cut."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from macd.jobs.contact import Contact
from macd.jobs.order import REQUEST, Order


@dataclass(frozen=True)
class Sent:
    """What the sync did; bytes before compression."""

    sent: int
    total: int
    landed: int
    files: int


def missing(contact: Contact, order: Order) -> tuple[int, int]:
    """How many blobs and bytes would travel. Changes nothing."""
    blobs = {blob.sha256: blob.size for blob in order.tree.files.values()}
    listed = [[sha256, size] for sha256, size in blobs.items()]
    work = contact.host.work_dir
    told = contact.use(lambda session: session.call("blobs_missing", root=work, blobs=listed))
    return len(told["missing"]), sum(blobs[sha256] - have for sha256, have in told["missing"])


def send(
    contact: Contact, order: Order, progress: Callable[[int, int], None] | None = None
) -> Sent:
    """Send what the host lacks and lay the tree out there. Raises as blobs.put does."""
    work, files = contact.host.work_dir, order.tree.files
    placed = [[path, blob.sha256] for path, blob in sorted(files.items())]
    report = contact.use(lambda session: session.put_blobs(work, files.values(), progress))
    contact.use(
        lambda session: session.call("job_tree", work=work, digest=order.tree.digest, files=placed)
    )
    return Sent(report.sent, order.tree.size, report.landed, len(files))


def start(contact: Contact, order: Order, about: dict[str, Any]) -> dict[str, Any]:
    """Start the run; asked twice it is still started once. Returns its status.

    Raises RefusedError while another run goes on there.
    """
    env = {"PYTHONPATH": "{tree}", "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    request = json.dumps(order.request, indent=1, sort_keys=True) + "\n"
    status: dict[str, Any] = contact.use(
        lambda session: session.call(
            "job_start",
            work=contact.host.work_dir,
            run=order.run,
            argv=order.argv,
            env={**env, **order.env},
            tree=order.tree.digest,
            about=about,
            files={REQUEST: request},
        )
    )
    return status
