"""Files and folders that an experiment reads, and which of them are not there: told before anything runs for hours."""

from pathlib import Path

from sfd_core.config import LDMVAEParams, Params
from sfd_core.errors import DataError


def missing_inputs(params: Params, project: Path = Path()) -> dict[str, str]:
    """Return, by key of `params.yaml`, the images, weights and statistics that are named there but not found.

    What a package ships or a hub provides is none of them.
    """
    vae = params.texture_vae
    named = {
        "prepare.path": params.prepare.path,
        "prepare.held_out_path": params.prepare.held_out_path,
        "texture_vae.weights": vae.weights if isinstance(vae, LDMVAEParams) else None,
        "features.weights": params.features.weights if params.features.weights not in {"package", "hub"} else None,
        "semantic_vae.weights": params.semantic_vae.weights,
        "reference.inception_weights": params.reference.inception_weights,
        "reference.adm_npz": params.reference.adm_npz,
        "evaluate.sampler.guide": params.evaluate.sampler.guide,
    }
    return {key: path for key, path in named.items() if path is not None and not _is_there(path, project)}


def require_inputs(params: Params, project: Path = Path()) -> None:
    """Raise `DataError` that lists every input that is named but not found."""
    missing = missing_inputs(params, project)
    if missing:
        raise DataError(
            f"not there: {in_words(missing)}; put them in place (the preset's head and docs/imagenet.md say where from) or "
            "mend the paths"
        )


def in_words(missing: dict[str, str]) -> str:
    """Return missing inputs in one line."""
    return ", ".join(f"{path} ({key})" for key, path in missing.items())


def _is_there(path: str, project: Path) -> bool:
    """Whether a file or folder exists, or a file that a pattern of images matches."""
    place = project / path
    pattern = str(place.relative_to(place.anchor))
    return place.exists() or any(Path(place.anchor).glob(pattern))
