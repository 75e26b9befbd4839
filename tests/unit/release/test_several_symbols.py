"""A release of several symbols: trees as of one symbol each, one manifest."""

from __future__ import annotations

from pathlib import Path

from macd.app.predict import golden
from macd.app.predict.scoring import MODELS, Scorer
from macd.host.store.manifest import parse
from tests.support.several_symbols import SYMBOLS, add_release


def test_each_symbol_has_a_tree_of_its_own(tmp_path: Path) -> None:
    release = tmp_path / "releases" / add_release(tmp_path)
    assert parse((release / "manifest.json").read_bytes()).serves == SYMBOLS
    scorers = {name: Scorer.load(release / "symbols" / name / MODELS, "1h") for name in SYMBOLS}
    for name, scorer in scorers.items():
        document = golden.read(release / "symbols" / name)
        assert document is not None
        assert (scorer.symbol, document["symbol"]) == (name, name)
        assert golden.check(document, scorer).ok
        others = [other for other in SYMBOLS if other != name]
        assert not any(golden.check(document, scorers[other]).ok for other in others)
