"""The stacking flag on a host, and the guard that takes it back."""
