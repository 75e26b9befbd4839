"""Typed, validated configuration: hosts, how to reach them, and every threshold people set."""

from macd.inventory.load import available, load, parsed, project_root, revoked
from macd.inventory.models import (
    LONGEST_EXPIRY_DAYS,
    Criterion,
    FeedSettings,
    GateSettings,
    GuardSettings,
    Host,
    Inventory,
    LinkSettings,
    ReleaseSettings,
    ServiceSettings,
    SoakSettings,
    TrainSettings,
)

__all__ = [
    "LONGEST_EXPIRY_DAYS",
    "Criterion",
    "FeedSettings",
    "GateSettings",
    "GuardSettings",
    "Host",
    "Inventory",
    "LinkSettings",
    "ReleaseSettings",
    "ServiceSettings",
    "SoakSettings",
    "TrainSettings",
    "available",
    "load",
    "parsed",
    "project_root",
    "revoked",
]
