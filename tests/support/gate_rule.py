"""The gate's rule where an inventory says nothing else."""

from __future__ import annotations

from macd.gate import report
from macd.inventory import load

RULE = report.rule_of(load("lab"))
