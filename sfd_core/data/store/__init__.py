"""Hashed, memory-mapped arrays on disk: shards, their pieces, and verification."""
