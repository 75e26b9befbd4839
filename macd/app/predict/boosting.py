"""Import LightGBM alone, in training and in service. A fit's cache key holds all of this file."""

from __future__ import annotations

import sys
from typing import Any


def import_lightgbm() -> Any:
    """The lightgbm module, without the scikit-learn that it imports wherever it is installed.

    Nothing here uses its scikit-learn classes, and that import takes three quarters of the time.
    Raises ImportError where lightgbm is missing.
    """
    hidden = "sklearn" not in sys.modules
    if hidden:
        sys.modules["sklearn"] = None  # type: ignore[assignment]
    try:
        import lightgbm  # noqa: PLC0415 - slow, and health reports when it is missing
    finally:
        if hidden:
            del sys.modules["sklearn"]
    return lightgbm
