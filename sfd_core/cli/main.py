"""The commands of `sfd`. Heavy packages are imported by the command that needs them, so that `sfd --help` answers at once."""

import os
import sys
from pathlib import Path

from cyclopts import App, CycloptsError, Parameter

import sfd_core
from sfd_core.cli import clone, comparison, curve, evaluation, experiment, results, sampling, studies, tracking
from sfd_core.host.errors import ConfigError, exits_cleanly

app = App(
    name="sfd",
    help="Semantic-First Diffusion: sample, evaluate, import, check and vary experiments.",
    version=f"sfd {sfd_core.__version__}",
    default_parameter=Parameter(negative=(), consume_multiple=1),
    help_format="plaintext",
    version_format="plaintext",
    help_formatter="default" if sys.stdout.isatty() else "plain",
    print_error=False,
    exit_on_error=False,
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)
for command in (
    sampling.sample, sampling.ema, evaluation.evaluate, evaluation.measure, studies.guidance_curve, studies.path_curve,
    studies.error_field, studies.sweep_figure, studies.solvers, experiment.validate, experiment.reproduce,
    experiment.experiment, results.results, comparison.compare, tracking.track, tracking.dashboard, clone.status, clone.clean,
):  # fmt: skip
    app.command(command)
app.command(sampling.import_, name="import")
preset = App(name="preset", help="List, show, check or activate complete parameter sets.")
preset.command(experiment.list_presets, name="list")
preset.command(experiment.show_preset, name="show")
preset.command(experiment.check_presets, name="check")
preset.command(experiment.use_preset, name="use")
app.command(preset)
curves = App(name="curve", help="Compare trainings with a reference, or record one.")
curves.command(curve.compare)
curves.command(curve.record)
app.command(curves)
app.register_install_completion_command()


def main() -> None:
    """Run the command that the command line names, with the code of the folder it stands in, as DVC runs the stages there."""
    here = Path("sfd_core", "__init__.py")
    if here.is_file() and not here.samefile(sfd_core.__file__):
        os.execv(sys.executable, [sys.executable, "-m", "sfd_core.cli", *sys.argv[1:]])  # noqa: S606 (the same program)
    run()


@exits_cleanly
def run() -> None:
    """Run the command that the command line names, with the code that was imported."""
    words = sys.argv[1:]
    if words in ([], ["preset"], ["curve"]):
        raise ConfigError("name a command; --help lists them")
    try:
        app(words)
    except CycloptsError as error:
        raise ConfigError(" ".join(str(error).split())) from error
