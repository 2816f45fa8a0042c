"""One resumable training loop for every network: texture VAE, Semantic VAE and denoisers."""
