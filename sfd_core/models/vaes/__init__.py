"""Image VAEs, and compressors of patch tokens."""
