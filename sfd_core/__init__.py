"""Semantic-First Diffusion: data, models, asynchronous schedule, training, sampling and evidence."""

__version__ = "0.1.0"
