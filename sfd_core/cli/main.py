"""The commands of `sfd`. Heavy packages are imported by the command that needs them, so that `sfd --help` answers at once."""

import sys

from cyclopts import App, CycloptsError, Parameter

from sfd_core import __version__
from sfd_core.cli import clone, comparison, curve, evaluation, experiment, results, sampling, studies, tracking
from sfd_core.host.errors import ConfigError, exits_cleanly

app = App(
    name="sfd",
    help="Semantic-First Diffusion: sample, evaluate, import, check and vary experiments.",
    version=f"sfd {__version__}",
    default_parameter=Parameter(negative=(), consume_multiple=1),
    help_format="plaintext",
    version_format="plaintext",
    help_formatter="default" if sys.stdout.isatty() else "plain",
    print_error=False,
    exit_on_error=False,
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)
app.command(sampling.sample)
app.command(evaluation.evaluate)
app.command(studies.guidance_curve)
app.command(sampling.ema)
app.command(studies.path_curve)
app.command(studies.error_field)
app.command(studies.sweep_figure)
app.command(studies.solvers)
app.command(sampling.import_, name="import")
app.command(experiment.validate)
app.command(results.results)
app.command(tracking.track)
app.command(tracking.dashboard)
app.command(experiment.reproduce)
app.command(experiment.experiment)
app.command(clone.status)
app.command(comparison.compare)
app.command(clone.clean)
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


@exits_cleanly
def main() -> None:
    """Run the command that the command line names."""
    words = sys.argv[1:]
    if words in ([], ["preset"], ["curve"]):
        raise ConfigError("name a command; --help lists them")
    try:
        app(words)
    except CycloptsError as error:
        raise ConfigError(" ".join(str(error).split())) from error
