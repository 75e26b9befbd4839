"""What a model sees of the market: about 80 numbers a bar, one code for training and live.

Every value at row t uses bars up to and including t and nothing later; no value carries a price
or volume level (all prices times 1000, or all volumes, give the same features).
Formulas and their sources: docs/features.md.
"""

from macd.app.market.features.matrix import (
    FEATURE_VERSION,
    WARMUP,
    compute,
    feature_names,
    schema_hash,
)

__all__ = ["FEATURE_VERSION", "WARMUP", "compute", "feature_names", "schema_hash"]
