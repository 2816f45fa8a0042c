"""Checkpoints in the formats of other projects."""
