"""Bars and what is computed from them: one code for training and for the live service."""

import signal

import polars  # noqa: F401 - first, so that what follows holds

# polars puts itself before Python's handler of Ctrl-C, in a way that lets the system continue waits
# (SA_RESTART): a process that waits for a thread would not hear it.
signal.siginterrupt(signal.SIGINT, True)
