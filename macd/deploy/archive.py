"""macd-host.pyz: the host's own program, the same bytes wherever it is built."""

from __future__ import annotations

import io
import zipfile
from importlib import resources

from macd.ssh.assembler import with_imports

_WHEN = (1980, 1, 1, 0, 0, 0)
_MAIN = """import sys
if sys.argv[1:2] == ["guard"]:
    from macd.host.flag.guard import main
else:
    from macd.host.__main__ import main
sys.exit(main())
"""


def build() -> bytes:
    """The zipapp of what macd/host/__main__.py needs, and of the guard.

    Stored, not deflated: another version of zlib would give other bytes.
    """
    files = {"__main__.py": _MAIN, "macd/__init__.py": "", "macd/host/__init__.py": ""}
    for name, text in with_imports(["__main__", "flag.guard", "judge.judging"]).items():
        place = f"macd/host/{name.replace('.', '/')}.py"
        files[place] = text
        files.setdefault(f"{place.rpartition('/')[0]}/__init__.py", "")
    files["macd/heads.py"] = resources.files("macd").joinpath("heads.py").read_text("utf-8")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, text in sorted(files.items()):
            info = zipfile.ZipInfo(name, _WHEN)
            info.external_attr = 0o644 << 16
            archive.writestr(info, text)
    return out.getvalue()
