"""`sfd evaluate`: draw and measure images of a denoiser, or repeat a measurement; `sfd measure`: images from elsewhere."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from sfd_core.cli.options import ARTIFACT, EVALUATIONS, PARAMS, SAMPLES, UNCHANGED, Drawing, artifact_folder, output
from sfd_core.host.errors import ConfigError
from sfd_core.host.paths import OUTPUTS, require_disk, stage_dir, write_json

if TYPE_CHECKING:
    import numpy as np

    from sfd_core.evaluation.evaluator import Number
    from sfd_core.evaluation.measurement import Measured
    from sfd_core.evaluation.rerun import Measurement
    from sfd_core.experiment.params import Params, SamplerParams

OUT = "Also write all numbers with their protocols as JSON."
FROM = "Measure again what this file of numbers records, by its protocol; ARTIFACT says where the denoiser lies now."


@dataclass(frozen=True)
class Exports:
    """Files to write of an evaluation; None for not."""

    numbers: Path | None
    npz: Path | None
    png: Path | None


def evaluate(
    artifact: Annotated[str | None, ARTIFACT] = None,
    /,
    *,
    samples: Annotated[int | None, SAMPLES] = None,
    out: Annotated[Path | None, output(OUT)] = None,
    npz: Annotated[Path | None, output("Also write the images as ADM's evaluator takes them.")] = None,
    png: Annotated[Path | None, output("Also write the images as PNG files into this folder.", folder=True)] = None,
    recorded: Annotated[Path | None, Parameter(name="from", help=FROM)] = None,
    evaluations: Annotated[int | None, EVALUATIONS] = None,
    drawing: Drawing = UNCHANGED,
) -> None:
    """Draw images and measure their distance to the real ones.

    Several GPUs work together and give the same numbers:
    torchrun --nproc-per-node 8 -m sfd_core.cli evaluate sfd --samples 50000 --out numbers.json

    An interrupted measurement resumes when the same command is given again.
    """
    from sfd_core.experiment.params import load_params

    if recorded is not None:
        unused = drawing.given() | {"samples": samples, "npz": npz, "png": png, "evaluations": evaluations}
        given = [name.replace("_", "-") for name, value in unused.items() if value is not None]
        if given:
            raise ConfigError(f"--{given[0]} is not for --from, which takes everything from the file; leave it out")
        _repeat(load_params(PARAMS), recorded, artifact, out)
        return
    if artifact is None:
        raise ConfigError("nothing to evaluate; name a variant or the folder of a denoiser, or --from a file of numbers")
    params = load_params(PARAMS)
    sampler = drawing.sampler(params, evaluations)
    count = params.evaluate.final_samples if samples is None else samples
    from sfd_core.evaluation.export import require_new_folder

    if png:
        require_new_folder(png)
    measurement = drawn_measurement(params, artifact, drawing, sampler, evaluations)
    _measure(measurement, sampler, count, params.prepare.resolution, Exports(out, npz, png))


def measure(
    images: Annotated[Path, Parameter(help="An .npz as ADM's evaluator takes it, or a folder of PNG files.")],
    /,
    *,
    out: Annotated[Path | None, output(OUT)] = None,
) -> None:
    """Measure the distance to the real ones of images that another program drew, such as a baseline's samples.

    Extractors, reference and settings are those of `sfd evaluate`, so that the numbers of as many samples compare.
    """
    from sfd_core.evaluation.elsewhere import ImagesElsewhere
    from sfd_core.evaluation.evaluator import Evaluator
    from sfd_core.experiment.params import load_params

    params = load_params(PARAMS)
    found = ImagesElsewhere.open(images, params.prepare.resolution)
    evaluator = Evaluator.load(stage_dir("reference"), params.reference, params.evaluate.kid_subset_size)
    numbers = found.measure(evaluator)
    print(f"{found.count:,} images")
    _print_numbers(numbers)
    if out:
        write_json(out, {"final": numbers})


def _measure(measurement: "Measurement", sampler: "SamplerParams", samples: int, resolution: int, exports: Exports) -> None:
    from sfd_core.evaluation.export import write_npz, write_pngs
    from sfd_core.evaluation.measurement import Order, class_balanced_labels

    labels = class_balanced_labels(samples, len(measurement.pipeline.denoiser.classes))
    exported = [path for path in (exports.npz, exports.png) if path]
    image = 3 * resolution**2
    require_disk(OUTPUTS, samples * (measurement.evaluator.row_bytes + (image if exported else 0)), "sfd evaluate")
    for path in exported:
        require_disk(path, samples * image, f"writing {path}")
    order = Order(labels, sampler, keep_images=bool(exported))
    result = measurement.run(order, "samples")
    if result is not None:
        numbers, measured = result
        _print_numbers(numbers)
        if exports.numbers:
            write_json(exports.numbers, {"final": numbers})
        if exports.npz:
            write_npz(exports.npz, _arrays(measured), measured.labels.numpy(), resolution)
        if exports.png:
            write_pngs(exports.png, _arrays(measured))
        measured.forget()
    measurement.processes.leave()


def _repeat(params: "Params", recorded: Path, moved: str | None, out: Path | None) -> None:
    from sfd_core.evaluation.rerun import read_recorded

    groups: dict[str, Mapping[str, Number]] = {}
    for group, old in read_recorded(recorded).items():
        artifact = artifact_folder(moved) if moved else old.artifact
        measurement = load_measurement(params, artifact, old.recipe["step"], old.sampler)
        old.require_same(measurement)
        order = old.order(measurement.pipeline, stage_dir("encode"))
        result = measurement.run(order, group)
        if result is not None:
            groups[group], measured = result
            _print_both(group, old.numbers, groups[group])
            measured.forget()
    if out and measurement.processes.first:
        write_json(out, groups)
    measurement.processes.leave()


def drawn_measurement(
    params: "Params", artifact: str, drawing: Drawing, sampler: "SamplerParams", evaluations: Any = None
) -> "Measurement":
    """Load a denoiser as the command line asks for it. Raises `ConfigError` for an option that changes none of its images."""
    measurement = load_measurement(params, artifact_folder(artifact), drawing.snapshot, sampler)
    drawing.require_meaning(measurement.pipeline.denoiser.variant, sampler, evaluations)
    return measurement


def load_measurement(params: "Params", artifact: Path, step: int | None, sampler: "SamplerParams") -> "Measurement":
    """Join the other processes, and load what measures a denoiser."""
    from sfd_core.evaluation.rerun import Measurement
    from sfd_core.host.processes import Processes

    return Measurement.load(params, artifact, step, sampler, Processes.join())


def _arrays(measured: "Measured") -> "Iterator[np.ndarray[Any, np.dtype[np.uint8]]]":
    return (images.numpy() for images in measured.images())


def _print_numbers(numbers: "Mapping[str, Number]") -> None:
    for name, number in numbers.items():
        print(f"{name:<32} {number.value:.6g}")


def _print_both(group: str, old: Mapping[str, Mapping[str, Any]], new: "Mapping[str, Number]") -> None:
    print(f"{group:<32} {'recorded':>12} {'repeated':>12}")
    for name, number in old.items():
        before, now = float(number["value"]), new[name].value
        same = "equal" if before == now else f"differs by {abs(now - before) / max(abs(before), 1e-12):.1e} of the value"
        print(f"{name:<32} {before:>12.6g} {now:>12.6g}  {same}")
