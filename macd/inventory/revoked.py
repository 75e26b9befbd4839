"""The list of keys that no longer count: named and unreadable is not the same as none."""

from __future__ import annotations

from pathlib import Path

from macd.errors import UsageError
from macd.inventory.models import Inventory


def revoked(inventory: Inventory) -> Path | None:
    """The OpenSSH key revocation list; None where the inventory names none.

    Raises:
        UsageError: it is named and can't be read: silence would let every revoked key in again.
    """
    path = inventory.release.revoked
    if path is None:
        return None
    try:
        with path.open("rb"):
            return path
    except OSError as error:
        raise UsageError(
            f"the list of revoked keys can't be read: {path}",
            why=f"release.revoked in {inventory.path} names it: {error.strerror}",
            live="nothing was changed",
            hint="put it there (ssh-keygen -k -f FILE KEY.pub makes one), or take the line out",
        ) from error
