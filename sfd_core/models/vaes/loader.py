"""Loads texture VAEs of every kind."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file

from sfd_core.host.errors import DataError
from sfd_core.models.vaes.autoencoder_kl import AutoencoderKLVAE
from sfd_core.models.vaes.image_vae import CONFIG_FILE, WEIGHTS_FILE, ImageVAE, VAEManifest
from sfd_core.models.vaes.rae import RAEVAE
from sfd_core.models.vaes.texture_vae import TextureVAE, TextureVAEShape

PUBLISHED = (AutoencoderKLVAE, RAEVAE)


def load_texture_vae(folder: Path) -> tuple[ImageVAE, Mapping[str, str]]:
    """Read the folder of `ImageVAE.save`; returns the frozen network and its identity (name, hashes).

    Raises `DataError` if a file is missing or damaged, does not match its hash, or is of an unknown kind.
    """
    manifest = VAEManifest.read(folder)
    try:
        vae = _build(manifest)
        vae.load_state_dict(load_file(folder / WEIGHTS_FILE), assign=True)
    except (TypeError, KeyError, RuntimeError) as error:
        raise DataError(
            f"{folder / CONFIG_FILE} does not match the weights next to it ({error}); run `dvc repro texture_vae`"
        ) from error
    return vae.eval().requires_grad_(False), manifest.identity


def _build(manifest: VAEManifest) -> ImageVAE:
    if manifest.kind == TextureVAE.kind:
        return TextureVAE(TextureVAEShape(**manifest.network))
    published = {vae.kind: vae.from_description for vae in PUBLISHED}
    if manifest.kind not in published:
        raise DataError(
            f"unknown kind of texture VAE {manifest.kind!r}; this program reads {', '.join([TextureVAE.kind, *published])}"
        )
    return published[manifest.kind](manifest.network, manifest.identity)
