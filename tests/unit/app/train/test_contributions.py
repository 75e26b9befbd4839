"""What features gave to signals: of the shipped model, whole, and by the families of the docs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from macd.app.market.bars import read_bars
from macd.app.market.features import OTHERS, family_of, feature_names
from macd.app.train import contributions, dataset, lgbm
from macd.app.train.dataset import Bars, Dataset, Plan
from macd.app.train.fitdata import FitData
from macd.app.train.settings import settings_from
from macd.heads import head_names

ROOT = Path(__file__).parents[4]
SAMPLE = ROOT / "data/sample/BTCUSD_1h_2017-2019.parquet"


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset, Plan]:
    models = tmp_path_factory.mktemp("models")
    data = dataset.build(Bars("BTCUSD", "1h", read_bars(SAMPLE)[:2500], {}), 0.003)
    plan = dataset.plan(data, settings_from({"data": str(models), "folds": 2, "initial": 0.3}))
    names = feature_names()[:20]
    columns = [data.features.index(name) for name in names]
    given = FitData(data.X[:, columns], plan.holdout.train, data.y, features=names)
    fitted = lgbm.fit(given, lgbm.Params(rounds=5), seed=1)
    lgbm.save(fitted, models, "1h", facts={})
    return models, data, plan


def test_each_bar_is_explained_whole(shipped: tuple[Path, Dataset, Plan]) -> None:
    models, data, plan = shipped
    made = contributions.measure(models, data, plan)
    assert list(made["by_family"]) == list(head_names("1h"))
    p = lgbm.predict(lgbm.load(models, "1h"), data.X[:, :20], np.arange(len(data) - 6, len(data)))
    assert len(made["latest"]) == 6
    for i, bar in enumerate(made["latest"]):
        for k, head in enumerate(head_names("1h")):
            measured = bar["heads"][head]
            assert measured["p"] == pytest.approx(p[i, k], abs=1e-5)
            odds = measured["base"] + sum(measured["by_family"].values())
            assert odds == pytest.approx(math.log(measured["p"] / (1 - measured["p"])), abs=1e-4)


def test_sizes_are_ranked_and_a_family_is_no_larger_than_its_features(
    shipped: tuple[Path, Dataset, Plan],
) -> None:
    made = contributions.measure(*shipped)
    for head in head_names("1h"):
        by_feature, by_family = made["by_feature"][head], made["by_family"][head]
        assert list(by_feature.values()) == sorted(by_feature.values(), reverse=True)
        assert max(by_feature.values()) > 0
        for family, size in by_family.items():
            most = sum(v for name, v in by_feature.items() if family_of(name) == family)
            assert 0 <= size <= most + 1e-4


def test_no_lightgbm_no_contributions(shipped: tuple[Path, Dataset, Plan], tmp_path: Path) -> None:
    assert contributions.measure(tmp_path, *shipped[1:]) == {}


def test_every_feature_has_a_family_that_the_docs_have() -> None:
    page = (ROOT / "docs/features.md").read_text()
    families = {family_of(name) for name in feature_names(["ETHUSD"])}
    assert families > {OTHERS}
    for family in families:
        assert f"## {family}" in page or f"## The {family[0].lower()}{family[1:]}" in page, family
