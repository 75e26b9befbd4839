"""Which hosts of an environment a rollback takes back, and where to. Pure.

Without a release named it undoes the last deploy: only hosts on which that went live go back. After
a wave that failed the others never had it, and would lose the good release they serve.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from macd.deploy.state import HostState
from macd.host import own
from macd.host.flag.flag_file import DROPIN, LIVE


@dataclass(frozen=True)
class RollbackTarget:
    """Where one host goes: to `to` (None: nowhere, nothing good was live there); or it `stays`."""

    host: str
    live: str | None
    to: str | None
    stays: bool = False
    provisioned: bool = True
    files: Sequence[str] = ()
    edited: Sequence[str] = ()
    keys: Sequence[str] = ()
    dropins: Sequence[str] = ()
    flag: str = ""  # of an application that has it in a drop-in, where its models decide
    possible: Sequence[str] | None = None  # instead of `to`, which was never live there; None: `to`

    @property
    def goes(self) -> bool:
        """Whether another release would be live afterwards."""
        return not self.stays and self.to not in (None, self.live) and self.possible is None

    @property
    def changes(self) -> dict[str, Sequence[str]]:
        """For machines: what would be put back beside the release, what is kept and what stays."""
        names = ("files", "edited", "keys", "dropins")
        return {name: list(getattr(self, name)) for name in names}

    def __str__(self) -> str:
        if self.stays:
            return f"stays at {self.live or 'nothing'}: the last deploy did not go live there"
        if self.to is not None and self.to == self.live:
            return f"{self.to} is live already"
        if self.possible is not None:
            others = ", ".join(self.possible) or "none"
            return f"{self.to} was never live there; it can go back to: {others}"
        first = f"back to {self.to or 'nothing: no other good release was live there'}"
        return "\n".join([first, *(f"  {line}" for line in self._beside())])

    def _beside(self) -> Iterator[str]:
        if self.files:
            yield f"puts back as they were with {self.to}: {', '.join(self.files)}"
        for name in self.edited:
            yield f"{name} was changed on the host since the last deploy: what it says now is kept"
            yield f"beside it, as {name}.before-rollback-NUMBER"
        if self.keys:
            yield f"sets in .env as they were with {self.to}: {', '.join(self.keys)}"
            yield "the values they have now are kept beside it, as .env.before-rollback-NUMBER"
        if self.flag:
            yield f"sets {self.flag} to shadow, in its drop-in and, where it stands there, in .env"
        if self.goes:
            yield "leaves alone: everything else in .env" + "".join(f", {p}" for p in self.dropins)


def targets(
    looked: Sequence[tuple[str, HostState]], to: str = "", unseen: int = 0
) -> list[RollbackTarget]:
    """One for each host looked at. `to`: the release named, else each host's last good one.

    The newest release that is live on any of them is the one that is undone: serials only rise.

    Args:
        unseen: the highest serial that may be live on a host that could not be looked at.
    """
    if to:
        return [_target(name, state, to) for name, state in looked]
    newest = max([unseen, *(_serial(state) for _, state in looked)])
    return [
        _target(name, state, state.rollback.get("release"), stays=_serial(state) < newest)
        for name, state in looked
    ]


def _target(name: str, state: HostState, to: str | None, *, stays: bool = False) -> RollbackTarget:
    target = RollbackTarget(name, state.live, to, stays=stays, provisioned=state.exists)
    if not target.goes:
        return target
    lives = {str(entry["release"]) for entry in state.history}
    if state.exists and to not in lives.union(state.returns):
        return replace(target, possible=list(state.returns))
    returns = state.returns.get(to or "", {})
    dropins = [dropin["path"] for beside in state.dropins.values() for dropin in beside]
    return replace(
        target,
        files=returns.get("files", ()),
        edited=returns.get("edited", ()),
        keys=returns.get("keys", ()),
        dropins=dropins,
        flag=_decides_in_dropin(state),
    )


def _decides_in_dropin(state: HostState) -> str:
    """The flag that a rollback sets to shadow in a drop-in, which `keys` does not name."""
    try:
        flag = own.parse(state.service_settings).flag
    except (ValueError, LookupError, TypeError, AttributeError):
        return ""  # a way back is no place to stop at that
    decides = LIVE in (state.stacking.get("next"), state.stacking.get("running"))
    return flag.name if flag and flag.where == DROPIN and decides else ""


def _serial(state: HostState) -> int:
    committed = [entry for entry in state.history if entry["release"] == state.live]
    return int(committed[-1].get("serial", 0)) if committed else 0
