"""Runs the models anywhere, without torch: scores, stacking, golden predictions."""
