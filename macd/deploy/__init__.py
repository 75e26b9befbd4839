"""Bring a release onto its hosts: what is there, what should be, the difference, and the doing."""
