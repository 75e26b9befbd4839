"""macd-host.pyz: the host's own program, the same bytes wherever it is built."""

from __future__ import annotations

import io
import zipfile
from importlib import resources

_WHEN = (1980, 1, 1, 0, 0, 0)
_MAIN = "import sys\nfrom macd.host.__main__ import main\nsys.exit(main())\n"


def build() -> bytes:
    """The zipapp of macd/host. Stored, not deflated: another zlib would give other bytes."""
    files = {"__main__.py": _MAIN, "macd/__init__.py": ""}
    for source in resources.files("macd.host").iterdir():
        if source.name.endswith(".py"):
            files[f"macd/host/{source.name}"] = source.read_text("utf-8")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, text in sorted(files.items()):
            info = zipfile.ZipInfo(name, _WHEN)
            info.external_attr = 0o644 << 16
            archive.writestr(info, text)
    return out.getvalue()
