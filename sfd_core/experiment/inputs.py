"""Files and folders that an experiment reads and DVC does not own: whether they are there, and whether they are the same."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from sfd_core.experiment.params import DiffusersVAEParams, LDMVAEParams, Params
from sfd_core.host.errors import ConfigError, DataError
from sfd_core.host.files import files_below, is_path
from sfd_core.host.paths import OUTPUTS, file_digest, read_json, stage_dir

IMAGES = "prepare"
READERS = {name: name for name in (IMAGES, "texture_vae", "features", "semantic_vae", "reference", "evaluate")}
READERS["studies"] = "evaluate"
"""Stages that read such files -> the group whose keys name them."""
SMALL_BYTES = 2**30
"""Images of at most so many bytes are read whole."""
END_BYTES = 2**20
"""Read at both ends of a larger archive of images, where its headers or its footer lie."""


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
            f"missing inputs: {in_words(missing)}; correct the paths, or download what a preset "
            "needs (docs/imagenet.md says from where)"
        )


def require_none_in_outputs(params: Params, project: Path = Path()) -> None:
    """Raise `ConfigError` for an input inside `outputs`, which stages write."""
    for key, path in named_inputs(params, project).items():
        if Path(path).parts[:1] == (OUTPUTS.name,):
            raise ConfigError(
                f"{key} {path} lies in {OUTPUTS}, which stages write anew; copy it to another place, such as "
                f"weights/{Path(path).name}, and use that path"
            )


def input_digests(
    named: Mapping[str, str], stages: Iterable[str] = READERS, project: Path = Path()
) -> dict[str, dict[str, str]]:
    """Return, for each stage of `READERS`, a hash of the files at each of its keys of `named_inputs`.

    Everything counts by its content, except more than `SMALL_BYTES` of images: those count by names and sizes, archives of
    them also by their first and last bytes.
    Where nothing lies at a path any more, what was recorded counts, or the key is left out. Raises `DataError` for files that
    cannot be read, and for entries of a folder that are no files.
    """
    digests: dict[str, dict[str, str]] = {stage: {} for stage in stages}
    for key, path in named.items():
        group = key.partition(".")[0]
        readers = [stage for stage in digests if READERS[stage] == group]
        found = found_at(path, project) if readers else []
        now = _digest(found, images=group == IMAGES) if found else None
        for stage in readers:
            if digest := now or recorded_digests(stage, project).get(key):
                digests[stage][key] = digest
    return digests


def recorded_digests(stage: str, project: Path = Path()) -> dict[str, str]:
    """Return what stage `inputs` recorded of the files that `stage` reads; empty if it did not run, or the file is damaged."""
    return read_json(project / stage_dir("inputs") / f"{stage}.json")


def all_recorded_digests(project: Path = Path()) -> dict[str, str]:
    """Return what stage `inputs` recorded for all stages, by key; see `recorded_digests`."""
    return {key: digest for stage in READERS for key, digest in recorded_digests(stage, project).items()}


def require_recorded_inputs(stage: str, params: Params) -> None:
    """Raise `ConfigError` if `stage` reads files and they are not those that stage `inputs` recorded for it."""
    if stage not in READERS or not stage_dir("inputs").is_dir():
        return
    recorded, named = recorded_digests(stage), named_inputs(params)
    changed = [key for key, digest in input_digests(named, [stage])[stage].items() if recorded.get(key) != digest]
    if changed:
        raise ConfigError(
            f"{in_words({key: named[key] for key in changed})} changed after stage inputs looked, so the result of stage "
            f"{stage} would be recorded as that of other files; run `dvc repro --force inputs`, then the same command again"
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
    """Link inputs with relative paths into the experiment's folder; a link to where they lay before is made anew or goes.

    Raises `ConfigError` for a path that leads out of the project and, from the folder, to other files.
    """
    for path in named_inputs(params, project).values():
        if Path(path).is_absolute():
            continue
        for link in found_at(path, folder):
            if link.is_symlink() and not link.exists():
                link.unlink()
        for target in found_at(path, project):
            link = folder / target.relative_to(project)
            if link.is_symlink() and link.readlink() != target.resolve():
                link.unlink()
            if not link.exists():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(target.resolve())
            elif os.path.normpath(path).startswith("..") and not link.samefile(target):
                raise ConfigError(f"from {folder}, {path} leads to other files, {link.resolve()}; write the whole path instead")


def in_words(inputs: dict[str, str]) -> str:
    """Return inputs as one line of text."""
    return ", ".join(f"{path} ({key})" for key, path in inputs.items())


def _digest(found: list[Path], *, images: bool) -> str:
    digest = hashlib.sha256()
    try:
        files = list(_files(found))
        by_content = not images or sum(size for *_, size in files) <= SMALL_BYTES
        for top, file, size in files:
            folder = top if top.is_dir() and len(found) == 1 else top.parent
            digest.update(f"{file.relative_to(folder)}\0{size}\0".encode(errors="surrogateescape"))
            if by_content:
                digest.update(file_digest(file).encode())
            elif not top.is_dir():
                digest.update(_ends(file, size))
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}); make it readable, then run again") from error
    return digest.hexdigest()


def _files(found: list[Path]) -> Iterator[tuple[Path, Path, int]]:
    """Yield all files, each with the one of `found` that it is or lies in and its size."""
    for top in found:
        for file in files_below(top) if top.is_dir() else [top]:
            if not file.is_file():
                raise DataError(f"{file} is no file that can be read, such as a broken link; correct or remove it")
            yield top, file, file.stat().st_size


def _ends(file: Path, size: int) -> bytes:
    with file.open("rb") as opened:
        first = opened.read(END_BYTES)
        opened.seek(max(0, size - END_BYTES))
        return first + opened.read(END_BYTES)


def _vae_weights(params: Params, project: Path) -> str | None:
    """Return the path of a published VAE; None for a repository on the hub."""
    vae = params.texture_vae
    if isinstance(vae, LDMVAEParams):
        return vae.weights
    return vae.weights if isinstance(vae, DiffusersVAEParams) and is_path(vae.weights, project) else None
