"""From a folder to its texture VAE, whatever network it holds."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file

from sfd_core.host.errors import DataError
from sfd_core.models.vaes.autoencoder_kl import AutoencoderKLVAE
from sfd_core.models.vaes.image_vae import CONFIG_FILE, WEIGHTS_FILE, ImageVAE, VAEManifest
from sfd_core.models.vaes.texture_vae import TextureVAE, TextureVAEShape


def load_texture_vae(folder: Path) -> tuple[ImageVAE, Mapping[str, str]]:
    """Read what `ImageVAE.save` wrote; returns the frozen network and its identity (name, hashes).

    Raises `DataError` if a file is missing or damaged, does not match its hash, or is of a kind unknown here.
    """
    manifest = VAEManifest.read(folder)
    try:
        vae = _build(manifest)
        vae.load_state_dict(load_file(folder / WEIGHTS_FILE), assign=True)
    except (TypeError, KeyError, RuntimeError) as error:
        raise DataError(
            f"{folder / CONFIG_FILE} does not describe the network of the weights beside it ({error}); "
            "run `dvc repro texture_vae`"
        ) from error
    return vae.eval().requires_grad_(False), manifest.identity


def _build(manifest: VAEManifest) -> ImageVAE:
    if manifest.kind == TextureVAE.kind:
        return TextureVAE(TextureVAEShape(**manifest.network))
    if manifest.kind == AutoencoderKLVAE.kind:
        return AutoencoderKLVAE.from_description(manifest.network, manifest.identity)
    raise DataError(
        f"a texture VAE of kind {manifest.kind!r} is unknown; this program reads {TextureVAE.kind} and {AutoencoderKLVAE.kind}"
    )
