"""Networks: denoisers, VAEs, frozen encoders, and how their weights are kept and read."""
