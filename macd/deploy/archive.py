"""macd-host.pyz: the host's own program, the same bytes wherever it is built."""

from __future__ import annotations

import io
import zipfile
from importlib import resources

from macd.remote.assembler import with_imports

_WHEN = (1980, 1, 1, 0, 0, 0)
_MAIN = """import sys
if sys.argv[1:2] == ["guard"]:
    from macd.shadow.guard import main
else:
    from macd.host.__main__ import main
sys.exit(main())
"""
# Carried as text: this room knows nothing of that one, and the host needs it with nobody connected.
_GUARD = (
    *("guard", "judging", "starts", "gate", "bounds", "analyse", "continuity"),
    *("parse", "tallies", "realised", "reading"),
)


def build() -> bytes:
    """The zipapp of what macd/host/__main__.py needs, and of the guard.

    Stored, not deflated: another version of zlib would give other bytes.
    """
    files = {"__main__.py": _MAIN, "macd/__init__.py": "", "macd/host/__init__.py": ""}
    for name, text in with_imports(["__main__", "watching", "telling", "untrusted"]).items():
        files[f"macd/host/{name}.py"] = text
    files["macd/heads.py"] = resources.files("macd").joinpath("heads.py").read_text("utf-8")
    shadow = resources.files("macd").joinpath("shadow")
    files["macd/shadow/__init__.py"] = ""
    for name in _GUARD:
        files[f"macd/shadow/{name}.py"] = shadow.joinpath(f"{name}.py").read_text("utf-8")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, text in sorted(files.items()):
            info = zipfile.ZipInfo(name, _WHEN)
            info.external_attr = 0o644 << 16
            archive.writestr(info, text)
    return out.getvalue()
