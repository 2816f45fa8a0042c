"""Reads, converts and checks published image VAEs.

No code in the file is executed. The identity of a VAE is its name, the hash of the file, and the hash of the converted weights.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from torch import Tensor

from sfd_core.experiment.params import DiffusersVAEParams, LDMVAEParams
from sfd_core.host.errors import DataError, ResourceError
from sfd_core.host.files import is_path
from sfd_core.host.paths import file_digest
from sfd_core.models.public import ldm
from sfd_core.models.public.weights import load_strictly, read_public_checkpoint
from sfd_core.models.vaes.autoencoder_kl import CONFIG_KEYS, AutoencoderKLVAE, build_network
from sfd_core.models.vaes.rae import NETWORK_KEYS, RAEVAE, STATISTICS
from sfd_core.models.vaes.rae import build_network as build_rae

DIFFUSERS_CONFIG, DIFFUSERS_WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
FORMER_NAMES = re.compile(r"(\.attentions\.\d+\.)(query|key|value|proj_attn)(?=\.)")
ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def read_published_vae(params: LDMVAEParams | DiffusersVAEParams) -> AutoencoderKLVAE | RAEVAE:
    """Return the frozen VAE that `params` names, on the CPU.

    Raises `DataError` if its file is missing, damaged, of another family, or differs from `params` in channels or
    downsampling, and `ResourceError` if it cannot be downloaded.
    """
    vae = _read_ldm(params) if isinstance(params, LDMVAEParams) else _read_diffusers(params)
    found, wanted = (vae.shape.channels, vae.shape.downsampling), (params.channels, params.downsampling)
    if found != wanted:
        raise DataError(
            f"{params.weights} holds a VAE of {found[0]} channels at {found[1]} pixels per position (f{found[1]}d{found[0]}), "
            f"but texture_vae says channels {wanted[0]} and downsampling {wanted[1]} (f{wanted[1]}d{wanted[0]}); "
            "give the right file or change these two values"
        )
    return vae.eval().requires_grad_(False)


def _read_ldm(params: LDMVAEParams) -> AutoencoderKLVAE:
    path = Path(params.weights)
    try:
        state = ldm.network_weights(read_public_checkpoint(path))
        return _load_kl(ldm.configuration(state), ldm.to_diffusers(state), params.name, path)
    except DataError as error:
        raise DataError(f"texture_vae.weights {path}: {error}") from error


def _read_diffusers(params: DiffusersVAEParams) -> AutoencoderKLVAE | RAEVAE:
    folder = _diffusers_folder(params)
    path = folder / DIFFUSERS_WEIGHTS
    try:
        config = json.loads((folder / DIFFUSERS_CONFIG).read_text())
        made_by = config.get("_class_name")
        if made_by == "AutoencoderRAE":
            return _load_rae(config, read_public_checkpoint(path), params.name, path)
        if made_by != "AutoencoderKL":
            raise DataError(
                f"{folder / DIFFUSERS_CONFIG} describes a {made_by}, not an AutoencoderKL or AutoencoderRAE; choose another VAE"
            )
        # Older files rely on diffusers' defaults for missing keys.
        known = {key: config[key] for key in CONFIG_KEYS if key in config}
        return _load_kl(known, _current_names(read_public_checkpoint(path)), params.name, path)
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{folder / DIFFUSERS_CONFIG} is no VAE configuration ({error}); download it again") from error
    except DataError as error:
        raise DataError(f"texture_vae.weights {params.weights}: {error}") from error


def _diffusers_folder(params: DiffusersVAEParams) -> Path:
    """Return the local folder of configuration and weights; a hub repository is downloaded once."""
    path = Path(params.weights)
    if path.is_file():
        return path.parent
    if path.is_dir():
        return path / (params.subfolder or "")
    if is_path(params.weights):
        raise DataError(
            f"texture_vae.weights {path} does not exist; give a folder, a file in it, or a repository on the Hugging Face hub"
        )
    try:
        files = [
            hf_hub_download(params.weights, name, subfolder=params.subfolder) for name in (DIFFUSERS_CONFIG, DIFFUSERS_WEIGHTS)
        ]
    except (HFValidationError, EntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ResourceError(
            f"texture_vae.weights {params.weights} is no local folder and could not be downloaded from the hub "
            f"({str(error).splitlines()[0]}); connect to the network, correct the name or subfolder, or download "
            f"{DIFFUSERS_CONFIG} and {DIFFUSERS_WEIGHTS} to a folder and set texture_vae.weights to it"
        ) from error
    return Path(files[0]).parent


def _current_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights with the names of attention layers since diffusers 0.15."""
    return {FORMER_NAMES.sub(lambda match: match[1] + ATTENTION[match[2]], name): value for name, value in state.items()}


def _load_kl(config: Mapping[str, Any], state: Mapping[str, Tensor], name: str, source: Path) -> AutoencoderKLVAE:
    network = build_network(config)
    _load(network, state, "give the checkpoint of a latent-diffusion KL VAE")
    return AutoencoderKLVAE(network, {"name": name, "source": file_digest(source)})


def _load_rae(config: Mapping[str, Any], state: Mapping[str, Tensor], name: str, source: Path) -> RAEVAE:
    absent = [key for key in STATISTICS.values() if key not in state]
    if absent:
        raise DataError(f"the file has no {', '.join(absent)}; give the checkpoint of an RAE")
    statistics = {key: list(state[value].shape) for key, value in STATISTICS.items()}
    network = build_rae({key: config[key] for key in NETWORK_KEYS if key in config}, statistics)
    computed = "decoder.decoder_pos_embed"  # older files hold it, too
    _load(network, {key: value for key, value in state.items() if key != computed}, "give the checkpoint of an RAE")
    return RAEVAE(network, {"name": name, "source": file_digest(source)})


def _load(network: Any, state: Mapping[str, Tensor], remedy: str) -> None:
    load_strictly(network, {key: value.float().contiguous() for key, value in state.items()}, remedy)
