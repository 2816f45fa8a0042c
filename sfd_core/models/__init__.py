"""Networks: denoisers, VAEs, frozen encoders, and their weights on disk."""
