"""Releases, runtimes and settings as they lie on a host."""
