"""How code on a host refuses or gives up with words meant for a person, not a traceback."""

from __future__ import annotations


class HostError(Exception):
    """A failure the operator is told as it stands.

    Args:
        what: what happened, one line.
        why: the cause as far as the host knows it.
        hint: what to do next.
        live: what is live on the host now, where that could be in doubt.
        kind: a word the caller may branch on; "refused" becomes a RefusedError over there.
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
