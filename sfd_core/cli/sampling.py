"""`sfd sample`: images of a trained denoiser, to look at; and the options of everything that draws."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sfd_core.cli.results import PARAMS
from sfd_core.experiment.params import Params, SamplerParams, load_params, parse_params
from sfd_core.host.errors import ConfigError
from sfd_core.host.paths import OUTPUTS, stage_dir

if TYPE_CHECKING:
    from sfd_core.sampling.pipeline import Pipeline

FIELDS = ("solver", "gaussian_solver", "evaluations", "shift", "guidance", "guide", "seed")


def add_sample(commands: Any) -> None:
    """Add the command to the subparsers `commands`."""
    command = commands.add_parser("sample", help="draw images and write them as one PNG", description=_sample.__doc__)
    add_sampler(command)
    command.add_argument("--labels", nargs="+", metavar="LABEL", help="names or indices of classes (default: every class once)")
    command.add_argument("--count", type=int, default=1, metavar="N", help="images of each label (default: %(default)s)")
    command.add_argument(
        "--columns", type=int, default=8, metavar="N", help="images in a row of the grid (default: %(default)s)"
    )
    command.add_argument("--out", type=Path, default=Path("samples.png"), metavar="FILE", help="(default: %(default)s)")
    command.set_defaults(handler=_sample)


def add_sampler(command: argparse.ArgumentParser, needs_artifact: bool = True, evaluations: Literal["+"] | None = None) -> None:
    """Add the denoiser and every value of the sampler to a command; `evaluations` "+" takes several numbers of those."""
    command.add_argument(
        "artifact", nargs=None if needs_artifact else "?", help="a variant's name, or the folder of a trained denoiser"
    )
    command.add_argument(
        "--snapshot", type=int, metavar="STEP", help="take the weights of this training step (default: the last)"
    )
    options = command.add_argument_group("sampler", "default: evaluate.sampler of params.yaml")
    options.add_argument("--seed", type=int, metavar="N", help="image i depends on the seed and on i alone")
    options.add_argument("--evaluations", type=int, nargs=evaluations, metavar="N", help="network evaluations an image")
    options.add_argument("--solver", choices=["euler", "heun", "ab2", "dopri5"], help="of velocity models")
    options.add_argument("--gaussian-solver", choices=["ddpm", "ddim"], help="of DiT")
    options.add_argument("--shift", type=float, metavar="S", help="timestep shift; 1 is none")
    options.add_argument("--guidance", choices=["none", "cfg", "autoguidance"])
    options.add_argument("--guide", metavar="FOLDER", help="the weak model of autoguidance")
    for part in ("texture", "semantic"):
        options.add_argument(f"--{part}-scale", type=float, metavar="W", help=f"guidance of the {part} velocity; 1 is none")
        options.add_argument(
            f"--{part}-interval", type=float, nargs=2, metavar=("FROM", "TO"), help=f"where it acts on the {part}'s own time"
        )


def _sample(arguments: argparse.Namespace) -> None:
    """Draw images of a trained denoiser and write them as one PNG."""
    sampler, pipeline = _prepared(arguments)
    classes = list(pipeline.denoiser.classes)
    chosen = find_labels(arguments.labels, classes) if arguments.labels else list(range(len(classes)))
    labels = [label for label in chosen for _ in range(arguments.count)]
    samples = pipeline(labels, seed=sampler.seed, sampler=sampler)
    samples.save_grid(arguments.out, arguments.columns)
    print(
        f"{arguments.out}: {len(labels)} images of {', '.join(_names(chosen, classes))}; {samples.evaluations} evaluations each"
    )


def _prepared(arguments: argparse.Namespace) -> "tuple[SamplerParams, Pipeline]":
    """Check the options, then load the denoiser."""
    params = load_params(PARAMS)
    sampler = sampler_of(arguments, params)
    from sfd_core.sampling.pipeline import Pipeline

    folder, vae = artifact_folder(arguments.artifact), OUTPUTS / "texture_vae"
    return sampler, Pipeline.from_artifact(folder, vae, arguments.snapshot, sampler.guide, params.engine.compile)


def artifact_folder(artifact: str) -> Path:
    """Return the folder of a variant by its name, or the folder that was named."""
    return stage_dir("train", artifact) if "/" not in artifact else Path(artifact)


def sampler_of(arguments: argparse.Namespace, params: Params) -> SamplerParams:
    """Return `evaluate.sampler` with what the command line says. Raises `ConfigError` for values that do not fit together."""
    changes: dict[str, Any] = {name: value for name in FIELDS if (value := getattr(arguments, name)) is not None}
    if arguments.guidance in {"none", "cfg"}:
        changes["guide"] = None
    values = params.model_dump(mode="json")
    sampler = values["evaluate"]["sampler"]
    for part in ("texture", "semantic"):
        given = {key: getattr(arguments, f"{part}_{key}") for key in ("scale", "interval")}
        changes[part] = sampler[part] | {key: value for key, value in given.items() if value is not None}
    sampler |= changes
    return parse_params(values, source="what the options ask for").evaluate.sampler


def find_labels(wanted: Sequence[str], classes: list[str]) -> list[int]:
    """Find classes by name, whatever their case, or by index. Raises `ConfigError` that lists the classes."""
    indices = {name.casefold(): index for index, name in enumerate(classes)}
    found = [indices.get(text.casefold(), int(text) if text.isdecimal() else -1) for text in wanted]
    unknown = [text for text, index in zip(wanted, found, strict=True) if not 0 <= index < len(classes)]
    if unknown:
        listed = ", ".join(f"{index} {name}" for index, name in enumerate(classes))
        raise ConfigError(f"unknown labels {', '.join(unknown)}; the classes are {listed}")
    return found


def _names(labels: list[int], classes: list[str]) -> list[str]:
    return [classes[label] for label in labels]
