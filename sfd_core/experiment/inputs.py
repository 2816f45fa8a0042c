"""Files and folders that an experiment reads, checked for existence before a long run."""

from pathlib import Path

from sfd_core.experiment.params import DiffusersVAEParams, LDMVAEParams, Params
from sfd_core.host.errors import ConfigError, DataError
from sfd_core.host.paths import OUTPUTS


def named_inputs(params: Params, project: Path = Path()) -> dict[str, str]:
    """Return paths of images, weights and statistics by their key in `params.yaml`.

    Files from packages or a hub are not included.
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
    """Return the missing inputs by key."""
    return {key: path for key, path in named_inputs(params, project).items() if not found_at(path, project)}


def require_inputs(params: Params, project: Path = Path()) -> None:
    """Raise `DataError` that lists all missing inputs."""
    missing = missing_inputs(params, project)
    if missing:
        raise DataError(
            f"missing inputs: {in_words(missing)}; download them (docs/imagenet.md says from where) or correct the paths"
        )


def require_none_in_outputs(params: Params, project: Path = Path()) -> None:
    """Raise `ConfigError` for an input inside `outputs`, which every experiment creates for itself."""
    for key, path in named_inputs(params, project).items():
        if Path(path).parts[:1] == (OUTPUTS.name,):
            raise ConfigError(
                f"{key} {path} lies in {OUTPUTS}, which every experiment creates anew; copy it to another place, such as "
                f"weights/{Path(path).name}, and use that path"
            )


def found_at(path: str, project: Path) -> list[Path]:
    """Return the file or folder `path`, or all files that match it as a pattern; relative to `project`.

    Raises `ConfigError` for words that can be neither.
    """
    found = project / path
    try:
        if found.exists():
            return [found]
        base = Path(Path(path).anchor) if Path(path).is_absolute() else project
        return sorted(base.glob(str(Path(path).relative_to(Path(path).anchor))))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path!r} can be neither a path nor a pattern ({reason}); correct it in params.yaml") from error


def link_inputs(params: Params, folder: Path, project: Path) -> None:
    """Link inputs with relative paths into the experiment's folder; a link to where they lay before is made anew."""
    for path in named_inputs(params, project).values():
        for target in found_at(path, project) if not Path(path).is_absolute() else []:
            link = folder / target.relative_to(project)
            if link.is_symlink() and link.readlink() != target.resolve():
                link.unlink()
            if not link.exists():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(target.resolve())


def in_words(inputs: dict[str, str]) -> str:
    """Return inputs as one line of text."""
    return ", ".join(f"{path} ({key})" for key, path in inputs.items())


def _vae_weights(params: Params, project: Path) -> str | None:
    """Return the path of a published VAE; a diffusers folder that does not exist is a name on the hub."""
    vae = params.texture_vae
    if isinstance(vae, LDMVAEParams):
        return vae.weights
    return vae.weights if isinstance(vae, DiffusersVAEParams) and (project / vae.weights).exists() else None
