"""`sfd evaluate`: images of a trained denoiser drawn, measured and, where asked for, exported; or a measurement repeated."""

import argparse
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sfd_core.cli.results import PARAMS
from sfd_core.cli.sampling import FIELDS, add_sampler, artifact_folder, sampler_of
from sfd_core.experiment.params import Params, load_params
from sfd_core.host.errors import ConfigError
from sfd_core.host.paths import OUTPUTS, require_disk, stage_dir, write_json

if TYPE_CHECKING:
    from sfd_core.evaluation.evaluator import Number
    from sfd_core.evaluation.measurement import Batch, Measured, Progress
    from sfd_core.evaluation.rerun import Measurement

EXAMPLES = """several GPUs draw and measure together and give the same numbers:
  torchrun --nproc-per-node 8 -m sfd_core.cli evaluate sfd --samples 50000 --out numbers.json
an interrupted measurement resumes when the same command is given again."""


def add_evaluate(commands: Any) -> None:
    """Add the command to the subparsers `commands`."""
    command = commands.add_parser(
        "evaluate",
        help="draw images and measure their distance to real ones",
        description=_evaluate.__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_sampler(command, needs_artifact=False)
    command.add_argument("--samples", type=int, metavar="N", help="images to measure (default: evaluate.final_samples)")
    command.add_argument("--out", type=Path, metavar="FILE", help="also write all numbers with their protocols as JSON")
    command.add_argument("--npz", type=Path, metavar="FILE", help="also write the images as ADM's evaluator takes them")
    command.add_argument("--png", type=Path, metavar="FOLDER", help="also write the images as PNG files")
    command.add_argument(
        "--from",
        type=Path,
        metavar="FILE",
        dest="recorded",
        help="measure again what this file of numbers records, by its protocol; ARTIFACT says where the denoiser lies now",
    )
    command.set_defaults(handler=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> None:
    """Draw images of a trained denoiser and measure, with every extractor, their distance to the real images."""
    if arguments.recorded is None and arguments.artifact is None:
        raise ConfigError("nothing to evaluate; name a variant or the folder of a denoiser, or --from a file of numbers")
    params = load_params(PARAMS)
    if arguments.recorded is not None:
        _repeat(arguments, params)
    else:
        _measure(arguments, params)


def _measure(arguments: argparse.Namespace, params: Params) -> None:
    sampler = sampler_of(arguments, params)
    samples = params.evaluate.final_samples if arguments.samples is None else arguments.samples
    from sfd_core.data.store.export import require_new_folder, write_npz, write_pngs
    from sfd_core.evaluation.measurement import Order, class_balanced_labels

    if arguments.png:
        require_new_folder(arguments.png)
    artifact = artifact_folder(arguments.artifact)
    measurement = load_measurement(params, artifact, arguments.snapshot, sampler.guide)
    labels = class_balanced_labels(samples, len(measurement.pipeline.denoiser.classes))
    exported = [path for path in (arguments.npz, arguments.png) if path]
    image = 3 * params.prepare.resolution**2
    row = measurement.evaluator.row_bytes + (image if exported else 0)
    require_disk(OUTPUTS, samples * row, "sfd evaluate")
    for path in exported:
        require_disk(path, samples * image, f"writing {path}")
    order = Order(labels, sampler, keep_images=bool(exported))
    result = measurement.run(order, progress=showing("samples", sampler.batch_size))
    if result is not None:
        numbers, measured = result
        _print(numbers)
        if arguments.out:
            write_json(arguments.out, {"final": numbers})
        if arguments.npz:
            write_npz(arguments.npz, _arrays(measured), measured.labels.numpy(), params.prepare.resolution)
        if arguments.png:
            write_pngs(arguments.png, _arrays(measured))
        measured.forget()
    measurement.processes.leave()


def _repeat(arguments: argparse.Namespace, params: Params) -> None:
    given = [name for name in (*FIELDS, "snapshot", "samples", "npz", "png") if getattr(arguments, name) is not None]
    given += [f"{part}_{key}" for part in ("texture", "semantic") for key in ("scale", "interval")]
    given = [name for name in given if getattr(arguments, name) is not None]
    if given:
        raise ConfigError(
            f"--{given[0].replace('_', '-')} is not for --from, which takes everything from the file; leave it out"
        )
    from sfd_core.evaluation.rerun import read_recorded

    groups: dict[str, Mapping[str, Number]] = {}
    recorded = read_recorded(arguments.recorded)
    for group, old in recorded.items():
        artifact = artifact_folder(arguments.artifact) if arguments.artifact else old.artifact
        measurement = load_measurement(params, artifact, old.recipe["step"], old.sampler.guide)
        old.require_same(measurement)
        order = old.order(measurement.pipeline, stage_dir("encode") / "train")
        result = measurement.run(order, showing(group, old.sampler.batch_size))
        if result is not None:
            groups[group], measured = result
            _print_both(group, old.numbers, groups[group])
            measured.forget()
    if arguments.out and measurement.processes.first:
        write_json(arguments.out, groups)
    measurement.processes.leave()


def load_measurement(params: Params, artifact: Path, step: int | None, guide: str | None) -> "Measurement":
    """Join the other processes, and load a denoiser and the evaluator of the experiment."""
    from sfd_core.evaluation.evaluator import Evaluator
    from sfd_core.evaluation.rerun import Measurement
    from sfd_core.host.processes import Processes
    from sfd_core.sampling.pipeline import Pipeline

    processes = Processes.join()
    pipeline = Pipeline.from_artifact(artifact, OUTPUTS / "texture_vae", step, guide, params.engine.compile)
    evaluator = Evaluator.load(stage_dir("reference"), params.reference, params.evaluate.kid_subset_size)
    return Measurement(artifact, pipeline, evaluator, processes)


def showing(what: str, batch_size: int) -> "Progress":
    """Return what shows how far drawing is."""
    from sfd_core.host.progress import with_progress

    def progress(batches: "Iterable[Batch]", total: int) -> "Iterator[Batch]":
        return with_progress(batches, total, what, step=batch_size)

    return progress


def _arrays(measured: "Measured") -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
    return (images.numpy() for images in measured.images())


def _print(numbers: "Mapping[str, Number]") -> None:
    for name, number in numbers.items():
        print(f"{name:<32} {number.value:.6g}")


def _print_both(group: str, old: Mapping[str, Mapping[str, Any]], new: "Mapping[str, Number]") -> None:
    print(f"{group:<32} {'recorded':>12} {'repeated':>12}")
    for name, number in old.items():
        before, now = float(number["value"]), new[name].value
        same = "equal" if before == now else f"differs by {abs(now - before) / max(abs(before), 1e-12):.1e} of the value"
        print(f"{name:<32} {before:>12.6g} {now:>12.6g}  {same}")
