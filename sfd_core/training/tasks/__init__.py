"""What the loop trains: denoisers, the Semantic VAE, the texture VAE."""
