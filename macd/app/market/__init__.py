"""Bars and what is computed from them: one code for training and for the live service."""
