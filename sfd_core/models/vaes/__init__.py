"""Image VAEs and the compressors of tokens."""
