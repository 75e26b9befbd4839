"""The error that code on a host raises for a person to read, without a traceback."""

from __future__ import annotations


class HostError(Exception):
    """A failure that the operator sees as it is.

    Args:
        what: what happened, one line.
        why: the cause as far as the host knows it.
        hint: what to do next.
        live: what is live on the host now, where that could be in doubt.
        kind: what a caller may branch on; "refused" becomes a RefusedError at the operator.
    """

    def __init__(
        self, what: str, *, why: str = "", hint: str = "", live: str = "", kind: str = "failed"
    ) -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.hint = hint
        self.live = live
        self.kind = kind


class PeerGoneError(Exception):
    """The client went away in the middle of something that needs it."""
