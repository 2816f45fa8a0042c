"""Frozen semantic encoders."""
