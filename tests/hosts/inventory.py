"""The inventory that points the product at the test hosts, under the names the guide uses."""

from __future__ import annotations

from pathlib import Path


def inventory_text(ssh_config: Path, known_hosts: Path) -> str:
    """Return the YAML of inventory/systemd-test.yml."""
    return f"""\
ssh_config: {ssh_config}
known_hosts: {known_hosts}
hosts:
  jumphost: {{role: jump, ssh: jumphost}}
  h800: {{role: train, ssh: h800, work_dir: ~/work/macd-analysis}}
  prod: {{role: serve, env: prod, ssh: prod, app_dir: /opt/macd-analysis, unit: macd-analysis}}
"""
