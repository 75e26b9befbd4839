"""When to ask again what just failed: growing pauses, then a circuit that opens for a while.

Pure: the clock and the jitter are arguments. After Nygard, Release It!.
"""

from __future__ import annotations

FIRST_S = 1.0
OPENS_AFTER, OPEN_S = 5, 300.0


class Breaker:
    """Failures in a row of one peer. `state`: "closed" (asking) or "open".

    An open one lets a question through each time its pause is over, and the answer decides: what is
    called half-open needs no state of its own.
    """

    def __init__(self) -> None:
        self.failures = 0
        self._next = 0.0

    @property
    def state(self) -> str:
        return "open" if self.failures >= OPENS_AFTER else "closed"

    def wait(self, now: float) -> float:
        """Seconds until the peer may be asked; 0: now. One question then decides."""
        return max(0.0, self._next - now)

    def failed(self, now: float, *, jitter: float, told: float = 0.0) -> float:
        """Note a failure; the pause. jitter: 0 to 1, so that many don't come back at once.

        told: seconds the peer itself asked to wait.
        """
        self.failures += 1
        pause = OPEN_S if self.failures >= OPENS_AFTER else FIRST_S * 2.0 ** (self.failures - 1)
        pause = max(pause * (0.75 + 0.5 * jitter), told)
        self._next = now + pause
        return pause

    def succeeded(self) -> None:
        self.failures = 0
        self._next = 0.0
