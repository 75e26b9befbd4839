"""Signs such as ✓ on a terminal whose encoding has none of them, such as GBK or Latin-1."""

from __future__ import annotations

import codecs
import io
import sys

_PLAIN = {"✓": "ok", "✗": "x", "⚠": "!", "●": "*", "•": "*", "·": "-", "−": "-", "–": "-", "—": "-"}
_PLAIN |= {"─": "-", "█": "#", "░": ".", "…": "...", "×": "x", "±": "+-", "≤": "<=", "≥": ">="}
_NAME = "macd-plain"


def spell_signs() -> None:
    """Make stdout and stderr spell what their encoding lacks, where Python would give up."""
    codecs.register_error(_NAME, _spelt)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() != "utf-8":
            stream.reconfigure(errors=_NAME)


def _spelt(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_PLAIN.get(sign, "?") for sign in lacking), error.end
