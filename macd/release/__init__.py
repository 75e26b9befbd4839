"""Releases: what the training hands over and production accepts, and the checks between them."""
