"""What users type: `invoke --list`. Each verb lives in macd/cli, one file per noun."""

from __future__ import annotations

import os
import sys

from invoke import Collection

from macd.cli import interrupts

interrupts.leave_quietly()
# Invoke forbids Python to keep compiled modules, and each command would compile them all again.
sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
# pydantic would look for plugins of its own in every installed package. Nothing here has one.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

from macd.cli import (  # noqa: E402 - these take a while
    audit,
    compare,
    dashboard,
    data,
    demo,
    deploy,
    doctor,
    flag,
    gate,
    health,
    history,
    host,
    init,
    lab,
    logs,
    monitor,
    provision,
    release,
    schedule,
    status,
    train,
    usage,
)

usage.install()

namespace = Collection(
    demo.demo,
    init.init,
    host.facts,
    history.history,
    health.health,
    provision.provision,
    deploy.plan,
    deploy.deploy,
    deploy.rollback,
    status.status,
    status.why,
    logs.logs,
    gate.shadow_gate,
    audit.audit,
    flag.enable_stacking,
    flag.disable_stacking,
    monitor.monitor,
    doctor.doctor,
    dashboard.dashboard,
    Collection("data", data.import_, data.resample, data.fetch, data.verify),
    Collection("host", host.list_, host.import_, host.trust),
    Collection("lab", lab.up, lab.down, lab.status, lab.fault),
    Collection("release", release.release, release.list_, release.show, release.verify),
    Collection(
        "train",
        train.train,
        train.status,
        train.attach,
        train.cancel,
        train.fetch,
        compare.compare,
        schedule.schedule,
    ),
)
