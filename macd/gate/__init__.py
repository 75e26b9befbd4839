"""What the service did in shadow, as evidence: pull its logs, analyse them, decide."""
