"""The stacking flag on a host, and the guard that disables it."""
