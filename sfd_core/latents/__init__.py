"""Images and tokens to latents and back: tokens, compressors, the composite, identity."""
