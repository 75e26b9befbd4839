"""The keys that sign are made whole, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from macd.init import keys
from macd.inventory import load, project_root


def test_interrupted_there_is_no_half_of_a_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inventory").mkdir()
    text = (project_root() / "inventory/lab.yml").read_text()
    (tmp_path / "inventory/lab.yml").write_text(text)
    inventory = load("lab", root=tmp_path)
    wanted = keys.missing(inventory)
    assert len(wanted) == 2
    real = keys.subprocess.run

    def interrupted(argv: list[str], **options: object) -> object:
        real(argv, **options)  # type: ignore[call-overload]
        Path(argv[-1]).with_suffix(".pub").unlink()  # as ssh-keygen leaves it, ended in between
        raise KeyboardInterrupt

    monkeypatch.setattr(keys.subprocess, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        keys.make(inventory)
    assert keys.missing(inventory) == wanted
    assert list(wanted[0].parent.iterdir()) == []
    monkeypatch.undo()
    assert [line.split()[0] for line in keys.make(inventory)] == ["made", "made", "entered"]
    assert keys.missing(inventory) == []
    assert all(key.stat().st_mode & 0o777 == 0o600 for key in wanted)
