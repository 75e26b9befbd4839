"""What users type: `invoke --list`. Each verb lives in macd/cli, one file per noun."""

from __future__ import annotations

from invoke import Collection

from macd.cli import data, facts, history, host, lab, usage

usage.install()

namespace = Collection(
    facts.facts,
    history.history,
    Collection("data", data.import_, data.fetch, data.verify),
    Collection("host", host.list_, host.trust),
    Collection("lab", lab.up, lab.down, lab.status, lab.fault),
)
