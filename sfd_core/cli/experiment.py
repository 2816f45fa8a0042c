"""Values of experiments: `sfd validate`, `sfd preset`, and `sfd experiment`, the pipeline beside the project."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from sfd_core.cli.options import PARAMS, output, whole
from sfd_core.cli.results import results, write_tables
from sfd_core.host.errors import ConfigError

if TYPE_CHECKING:
    from sfd_core.experiment.params import Params

AT_ONCE = whole("Stages that run at a time (default: 1 with GPUs, else one a core, up to 4).")
SET_HELP = "A value as nested in params.yaml; of a variant, none that builds on it follows. Repeatable."
SET = Parameter(name="set", help=SET_HELP, consume_multiple=False, metavar="KEY=VALUE")
VARIANTS = Parameter(help="Train these variants instead of the active ones.")
VARY = Parameter(help="A value of the variants, such as seed, and all it shall take.", metavar="KEY VALUE")


def experiment(
    name: Annotated[str, Parameter(help="Its folder is .sfd/experiments/NAME.")],
    /,
    *,
    preset: Annotated[str, Parameter(help="Start from this preset instead of from the project's params.yaml.")] = str(PARAMS),
    variants: Annotated[list[str] | None, VARIANTS] = None,
    changes: Annotated[list[str] | None, SET] = None,
    vary: Annotated[list[str] | None, VARY] = None,
    table: Annotated[Path | None, output("Also write the final numbers as CSV, one row a variant and value.")] = None,
    curves: Annotated[Path | None, output("Also write the convergence as CSV, one row a variant and snapshot.")] = None,
    studies: Annotated[Path | None, output("Also write the points of all studies as CSV.")] = None,
    at_once: Annotated[int | None, AT_ONCE] = None,
) -> None:
    """Run the pipeline beside the project with other values.

    What the project computed already is reused. Variants that lack the value of --vary are skipped.
    """
    from sfd_core.experiment.grid import base_values
    from sfd_core.host.machine import stages_at_once
    from sfd_core.workspace.experiments import Axis, experiment_dir, plan_experiment, run_experiment

    axis = None
    if vary:
        key, *values = vary
        if not values:
            raise ConfigError(f"--vary {key} names no value; write them behind the key, such as --vary seed 0 1 2")
        axis = Axis(key, tuple(parse_value(value) for value in values))
    assigned = dict(parse_assignment(change) for change in changes or [])
    if variants and assigned.setdefault("active", variants) != variants:
        raise ConfigError("--variants and --set active=... both say which variants are trained; leave one of them out")
    plan = plan_experiment(base_values(preset), assigned, axis)
    if axis and plan.skipped:
        print(f"--vary {axis.key} skips {', '.join(plan.skipped)}, in which it cannot vary", file=sys.stderr)
    folder = experiment_dir(name)
    run_experiment(plan, folder, at_once or stages_at_once())
    results(project=folder)
    if table or curves or studies:
        write_tables(plan, folder, table, curves, studies)


def reproduce(*, at_once: Annotated[int | None, AT_ONCE] = None) -> None:
    """Run the pipeline of params.yaml, several stages at a time.

    Like `dvc repro`, which runs one stage after another and does not see that images or weights changed under their path.
    """
    from sfd_core.host.machine import stages_at_once
    from sfd_core.workspace.dvc import Place, environment
    from sfd_core.workspace.places import look_at_inputs

    place = Place(Path(), environment(Path()))
    look_at_inputs(place)
    place.reproduce(at_once or stages_at_once())


def parse_assignment(text: str) -> tuple[str, Any]:
    """Split `key=value`. Raises `ConfigError` if there is no equals sign."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text!r} is not of the form key=value, such as train.optimisation.steps=6000")
    return key, parse_value(value)


def parse_value(text: str) -> Any:
    """Read a number, true, false, null or a list as JSON, anything else as text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def validate(file: Path = PARAMS, /) -> None:
    """Check a parameter file without running anything."""
    from sfd_core.experiment.drawable import require_drawable
    from sfd_core.experiment.params import load_params

    params = load_params(file)
    require_drawable(params)
    optimisation = params.train.optimisation
    size, grid, channels = params.prepare.resolution, params.latent_grid, params.texture_vae.channels
    print(
        f"{file} is a valid experiment: {params.prepare.source} at {size}x{size}, texture latent of {channels} channels on a "
        f"{grid}x{grid} grid; {', '.join(params.active)}, each trained for {optimisation.steps:,} steps of "
        f"{optimisation.batch_size} images"
    )
    _print_missing(params)


def list_presets() -> None:
    """Print every preset and what it reproduces."""
    from sfd_core.experiment.presets import load_preset, preset_names

    names = preset_names()
    width = max(len(name) for name in names)
    for name in names:
        print(f"{name:<{width}}  {(load_preset(name).header.splitlines() or [''])[0]}")


def show_preset(name: str, /) -> None:
    """Print the whole parameter file that a preset makes."""
    from sfd_core.experiment.presets import load_preset

    print(load_preset(name).text, end="")


def check_presets(*names: str) -> None:
    """Check presets, or else all, without running or writing anything."""
    from sfd_core.experiment.presets import load_preset, preset_names

    for name in names or preset_names():
        print(f"{name}: valid, trains {', '.join(load_preset(name).check().active)}")


def use_preset(name: str, /) -> None:
    """Write a preset to params.yaml; `git diff` shows the changes."""
    from sfd_core.experiment import presets
    from sfd_core.workspace.git import has_content

    preset = presets.load_preset(name)
    texts = (presets.load_preset(other).text for other in presets.preset_names())
    if (
        PARAMS.is_file()
        and not has_content(Path(), str(PARAMS))
        and PARAMS.read_bytes() not in (text.encode() for text in texts)
    ):
        raise ConfigError(
            f"{PARAMS} has changes that neither Git nor a preset has, and would be overwritten; commit it, move it to "
            f"{presets.PRESETS}/NAME.yaml to keep it as a preset, or delete it, then use {name} again"
        )
    presets.use_preset(preset, PARAMS)
    print(f"{PARAMS} is now preset {name}; `git diff {PARAMS}` shows the difference, `make repro` runs it")
    _print_missing(preset.check())


def _print_missing(params: "Params") -> None:
    from sfd_core.experiment.inputs import in_words, missing_inputs

    if missing := missing_inputs(params):
        print(f"not there yet: {in_words(missing)}")
