"""Tell people elsewhere how a deploy ended; whatever goes wrong here fails nothing else."""

from __future__ import annotations

import logging
from collections.abc import Sequence


def notify(urls: Sequence[str], title: str, body: str, *, good: bool) -> str:
    """Send to every Apprise URL. Returns "" or, in words without the URLs, what did not work."""
    if not urls:
        return ""
    try:
        import apprise  # noqa: PLC0415 - an extra, and slow to import
    except ImportError:
        return "notify is set in the inventory, but apprise is not installed: pip install apprise"
    logging.getLogger("apprise").setLevel(logging.CRITICAL)  # its warnings show URLs with tokens
    try:
        sender = apprise.Apprise()
        unusable = sum(not sender.add(url) for url in urls)
        kind = apprise.NotifyType.SUCCESS if good else apprise.NotifyType.FAILURE
        reached = sender.notify(title=title, body=body, notify_type=kind) if len(sender) else False
    except Exception as error:  # a library with a hundred transports; none may fail a deploy
        return f"notifying failed: {type(error).__name__}"
    if unusable or not reached:
        return f"{unusable or 'some'} of {len(urls)} notify URLs did not take the message"
    return ""
