"""What users type: `invoke --list`. Each verb lives in macd/cli, one file per noun."""

from __future__ import annotations

from invoke import Collection

from macd.cli import usage

usage.install()
namespace = Collection()
