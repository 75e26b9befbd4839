"""macd-host.pyz: the host's own program, the same bytes wherever it is built."""

from __future__ import annotations

import io
import zipfile

from macd.remote.assembler import with_imports

_WHEN = (1980, 1, 1, 0, 0, 0)
_MAIN = "import sys\nfrom macd.host.__main__ import main\nsys.exit(main())\n"


def build() -> bytes:
    """The zipapp of what macd/host/__main__.py needs.

    Stored, not deflated: another version of zlib would give other bytes.
    """
    files = {"__main__.py": _MAIN, "macd/__init__.py": "", "macd/host/__init__.py": ""}
    for name, text in with_imports(["__main__"]).items():
        files[f"macd/host/{name}.py"] = text
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, text in sorted(files.items()):
            info = zipfile.ZipInfo(name, _WHEN)
            info.external_attr = 0o644 << 16
            archive.writestr(info, text)
    return out.getvalue()
