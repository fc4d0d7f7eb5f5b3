"""Scores of checkpoints, and what they may be believed for."""
