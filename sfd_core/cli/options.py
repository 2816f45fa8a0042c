"""Options that several commands share: the denoiser, how its images are drawn, and how many."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter
from cyclopts.validators import Number

from sfd_core.host.errors import ConfigError
from sfd_core.host.paths import existing_parent, stage_dir

if TYPE_CHECKING:
    from sfd_core.experiment.params import Params, SamplerParams, VariantParams

PARAMS = Path("params.yaml")
RUN = Parameter(help="A project's folder, an experiment, a variant, or a Git ref; NAME@VARIANT is one variant of it.")
SAMPLER = Group("Sampler", help="Default: evaluate.sampler of params.yaml.", sort_key=2)

Solver = Literal["euler", "heun", "ab2", "dopri5"]
Times = tuple[float, float]
MOST = 10_000_000
"""No count is larger; what fits on the disk and into memory is checked where it is known."""


def whole(text: str, at_least: int = 1, at_most: int = MOST, **more: Any) -> Parameter:
    """Return an option of whole numbers, described by `text`; cyclopts alone would round 2.5 to 2."""

    def convert(type_: Any, tokens: Any) -> Any:
        numbers = [int(token.value) for token in tokens]
        return numbers if "list" in str(type_) else numbers[0]

    return Parameter(help=text, converter=convert, validator=Number(gte=at_least, lte=at_most), **more)


def output(text: str, folder: bool = False) -> Parameter:
    """Return an option of a file or folder to write, described by `text`; a place that cannot be one is refused at once."""

    def check(_: Any, path: Path | None) -> None:
        if path is None:
            return
        try:
            there = path.exists()
        except OSError as error:
            raise ValueError(f"{path} is no place ({error.strerror}); name another.") from error
        if there and path.is_dir() != folder:
            raise ValueError(f"{path} is a {'file' if folder else 'folder'}; name another place.")
        place = existing_parent(path.absolute().parent)
        try:
            with tempfile.NamedTemporaryFile(dir=place, prefix=f".{path.name}.", suffix=".partial"):  # as it will be written
                writable = not there or os.access(path, os.W_OK)
        except OSError:
            writable = False
        if not writable:
            raise ValueError(f"{place} is no folder that can be written with this name; name another place.")

    return Parameter(help=text, validator=check)


ARTIFACT = Parameter(help="A variant's name, or the folder of a trained denoiser.")
PATH_HELP = "Corners of the path to sample along, [[t_tex, t_sem], ...] from [0, 0] to [1, 1] (JSON)."
SAMPLES = whole("Images to draw, at each point of a study (default: evaluate.final_samples).", at_least=5)
EVALUATIONS = whole("Network evaluations an image.", group=SAMPLER)


@Parameter(name="*", group=SAMPLER)
@dataclass(frozen=True)
class Drawing:
    """How images are drawn; None is as in `evaluate.sampler`, or the last snapshot."""

    snapshot: Annotated[int | None, whole("Take the weights of this training step (default: the last).")] = None
    seed: Annotated[int | None, whole("Image i depends on the seed and on i alone.", 0, 2**62 - 1)] = None
    solver: Annotated[Solver | None, Parameter(help="Of velocity models.")] = None
    gaussian_solver: Annotated[Literal["ddpm", "ddim"] | None, Parameter(help="Of DiT.")] = None
    shift: Annotated[float | None, Parameter(help="Timestep shift; 1 is none.")] = None
    guidance: Literal["none", "cfg", "autoguidance", "internal", "semantic"] | None = None
    guide: Annotated[str | None, Parameter(help="Folder of the weak model of autoguidance, or of semantic guidance.")] = None
    guide_step: Annotated[int | None, whole("Snapshot of the weak model (default: the last).")] = None
    precision: Annotated[Literal["float32", "bfloat16"] | None, Parameter(help="Of the networks.")] = None
    delta_t: Annotated[float | None, Parameter(help="Offset to sample along (default: that of the training).")] = None
    path: Annotated[str | None, Parameter(help=PATH_HELP)] = None
    texture_scale: Annotated[float | None, Parameter(help="Guidance of the texture velocity; 1 is none.")] = None
    texture_interval: Annotated[Times | None, Parameter(help="From when to when it acts on the texture's own time.")] = None
    semantic_scale: Annotated[float | None, Parameter(help="Guidance of the semantic velocity; 1 is none.")] = None
    semantic_interval: Annotated[Times | None, Parameter(help="From when to when it acts on the semantics' own time.")] = None

    def given(self) -> dict[str, Any]:
        """Return the options that stand on the command line."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def sampler(self, params: "Params", evaluations: int | None = None, scales: Sequence[float] = ()) -> "SamplerParams":
        """Return `evaluate.sampler` with what the command line says; a study varies the `scales` of guidance.

        Raises `ConfigError` for values that do not fit, and for what changes nothing.
        """
        from sfd_core.experiment.params import parse_sampler
        from sfd_core.experiment.values import parse_yaml

        sampler, given = params.evaluate.sampler.model_dump(mode="json"), self.given()
        if self.delta_t is not None or self.path is not None:
            sampler["delta_t"] = sampler["path"] = None  # either replaces both
        if self.guide is not None:
            sampler["guide_step"] = None  # that of another guide
        elif self.guidance not in (None, "autoguidance"):
            sampler["guide"] = sampler["guide_step"] = None
        if self.guidance == "none":
            sampler["texture"]["scale"] = sampler["semantic"]["scale"] = 1.0
        if self.path is not None:
            given["path"] = parse_yaml(self.path, "--path")
        for name, value in (given | {"evaluations": evaluations}).items():
            part, _, key = name.partition("_")
            if key == "interval":
                sampler[part][key] = list(value)
            elif key == "scale":
                sampler[part][key] = value
            elif name != "snapshot" and value is not None:
                sampler[name] = value
        asked = parse_sampler(sampler, "what the options ask for")
        self._require_used(asked, scales)
        return asked

    def _require_used(self, asked: "SamplerParams", scales: Sequence[float]) -> None:
        if asked.guidance == "none" and (unused := self.of_parts(("texture", "semantic"), ("interval",))):
            raise ConfigError(f"{unused} would change nothing: there is no guidance; choose --guidance, or leave it out")
        if self.guidance not in (None, "none") and not scales and asked.texture.scale == asked.semantic.scale == 1:
            raise ConfigError(
                f"--guidance {self.guidance} would change nothing: its scales are 1; choose --texture-scale or --semantic-scale"
            )

    def of_parts(self, parts: Sequence[str], keys: Sequence[str]) -> str:
        """Return which options for guidance of `parts` stand on the command line, in words; "" if none does."""
        names = [(part, key) for part in parts for key in keys]
        return " and ".join(f"--{part}-{key}" for part, key in names if getattr(self, f"{part}_{key}") is not None)

    def require_meaning(self, variant: "VariantParams", asked: "SamplerParams", evaluations: Any = None) -> None:
        """Raise `ConfigError` for an option, `--evaluations` too, that changes no image of a denoiser like `variant`."""
        from sfd_core.experiment.drawable import require_fixed_steps

        fixed = [name for name, value in (("--evaluations", evaluations), ("--shift", self.shift)) if value is not None]
        require_fixed_steps(fixed, variant, asked.solver)
        unused = ["gaussian_solver"] if variant.family == "flow" else ["solver", "shift"]
        unused += ["semantic_scale", "semantic_interval"] if variant.semantic == "none" else []
        if given := [f"--{name.replace('_', '-')}" for name in unused if getattr(self, name) is not None]:
            kind = f"model {variant.model}{', which has no semantics' if variant.semantic == 'none' else ''}"
            raise ConfigError(f"{' and '.join(given)} would change nothing: this denoiser is of {kind}; leave it out")


UNCHANGED = Drawing()
"""Everything as in `evaluate.sampler`."""


def artifact_folder(artifact: str) -> Path:
    """Return the folder of a variant by its name, or the folder that was named."""
    return stage_dir("train", artifact) if "/" not in artifact else Path(artifact)
