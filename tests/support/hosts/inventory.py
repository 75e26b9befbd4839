"""The inventory that points the product at the test hosts, under the names the guide uses."""

from __future__ import annotations

from pathlib import Path

NAME = "systemd-test"


def write(root: Path, ssh_config: Path, known_hosts: Path) -> None:
    """Write inventory/systemd-test.yml: the guide's values, but for what a small host lacks."""
    (root / "inventory").mkdir()
    (root / "data").mkdir()
    (root / "inventory" / f"{NAME}.yml").write_text(f"""\
ssh_config: {ssh_config}
known_hosts: {known_hosts}
hosts:
  jump: {{role: jump, ssh: jumphost}}
  h800: {{role: train, ssh: h800, work_dir: ~/work/macd-analysis, scope: user}}
  prod: {{role: serve, env: prod, ssh: prod, app_dir: /opt/macd-analysis, unit: macd-analysis}}
train: {{profile: demo, require_gpu: false, min_free_gb: 1}}
""")
