"""Denoisers: LightningDiT, DiT and their layers."""
