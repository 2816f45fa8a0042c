"""Files and folders that an experiment reads, and which of them are not there: told before anything runs for hours."""

from pathlib import Path

from sfd_core.experiment.params import DiffusersVAEParams, LDMVAEParams, Params
from sfd_core.host.errors import ConfigError, DataError
from sfd_core.host.paths import OUTPUTS


def named_inputs(params: Params, project: Path = Path()) -> dict[str, str]:
    """Return, by key of `params.yaml`, the images, weights and statistics that are named there.

    What a package ships or a hub provides is none of them.
    """
    features, prepare = params.features, params.prepare
    named = {
        "prepare.path": prepare.path,
        "prepare.held_out_path": prepare.held_out_path,
        "texture_vae.weights": _vae_weights(params, project),
        "features.weights": features.weights if features.weights not in {"package", "hub"} else None,
        "semantic_vae.weights": params.semantic_vae.weights,
        "reference.inception_weights": params.reference.inception_weights,
        "reference.adm_npz": params.reference.adm_npz,
        "evaluate.sampler.guide": params.evaluate.sampler.guide,
    }
    return {key: path for key, path in named.items() if path is not None}


def missing_inputs(params: Params, project: Path = Path()) -> dict[str, str]:
    """Return, by key, the inputs that are named but not found."""
    return {key: path for key, path in named_inputs(params, project).items() if not found_at(path, project)}


def require_inputs(params: Params, project: Path = Path()) -> None:
    """Raise `DataError` that lists every input that is named but not found."""
    missing = missing_inputs(params, project)
    if missing:
        raise DataError(
            f"not there: {in_words(missing)}; put them in place (docs/imagenet.md says where from) or mend the paths"
        )


def require_none_in_outputs(params: Params, project: Path = Path()) -> None:
    """Raise `ConfigError` for an input below the outputs of stages, which every experiment makes anew for itself."""
    for key, path in named_inputs(params, project).items():
        if Path(path).parts[:1] == (OUTPUTS.name,):
            raise ConfigError(
                f"{key} {path} lies in {OUTPUTS}, which an experiment makes anew; copy it elsewhere, such as "
                f"weights/{Path(path).name}, and name it there"
            )


def found_at(path: str, project: Path) -> list[Path]:
    """Return the file or folder of that name, or the files that a pattern of images matches; relative to `project`."""
    place = project / path
    if place.exists():
        return [place]
    return sorted(Path(place.anchor).glob(str(place.relative_to(place.anchor))))


def link_inputs(params: Params, folder: Path, project: Path) -> None:
    """Let images and weights at relative paths be found from the experiment's folder, too."""
    for path in named_inputs(params, project).values():
        for target in found_at(path, project) if not Path(path).is_absolute() else []:
            link = folder / target.relative_to(project)
            if not link.exists():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(target.resolve())


def in_words(inputs: dict[str, str]) -> str:
    """Return inputs in one line."""
    return ", ".join(f"{path} ({key})" for key, path in inputs.items())


def _vae_weights(params: Params, project: Path) -> str | None:
    """Return the path of a published VAE; a folder in the format of diffusers that is not there is a name on the hub."""
    vae = params.texture_vae
    if isinstance(vae, LDMVAEParams):
        return vae.weights
    return vae.weights if isinstance(vae, DiffusersVAEParams) and (project / vae.weights).exists() else None
