"""Stage `studies`: what one variant does along other orders and with guidance, as `studies` of params.yaml names.

    python -m sfd_core.stages.studies --variant sfd

writes `outputs/studies/<variant>/<study>/`: a table, a figure and the numbers of every point. A variant without studies has an
empty folder. An interrupted stage keeps what it measured. Every GPU, or as many processes as `SFD_PROCESSES` says, takes its
share of the work; the numbers are the same.
"""

import argparse
from pathlib import Path

from sfd_core.data.store.shards import ShardReader
from sfd_core.evaluation.rerun import Measurement
from sfd_core.experiment.code import stage_code
from sfd_core.experiment.params import CornerStudy, ErrorFieldStudy, OffsetStudy, Params, StudyParams, fingerprint
from sfd_core.host.errors import exits_cleanly
from sfd_core.host.paths import stage_dir, write_json
from sfd_core.host.processes import Processes, spread
from sfd_core.host.resume import mixed_codes, resume_dir
from sfd_core.sampling.artifact import DenoiserManifest, snapshot_digest
from sfd_core.stages.start import begin_stage
from sfd_core.studies.error_field import run_error_field
from sfd_core.studies.guidance import guided_by, plan_points, run_curve
from sfd_core.studies.orders import plan_corners, plan_offsets, run_orders


def measure_study(study: StudyParams, params: Params, out: Path, processes: Processes) -> None:
    """Measure every point of a study that is not in `out` yet, and write its table and figure there."""
    artifact, samples, sampler = stage_dir("train", study.variant), params.evaluate.final_samples, params.evaluate.sampler
    if isinstance(study, OffsetStudy | CornerStudy):
        points = plan_offsets(sampler, study.offsets) if isinstance(study, OffsetStudy) else plan_corners(sampler, study.times)
        run_orders(study.kind, Measurement.load(params, artifact, None, sampler, processes), points, samples, out)
        return
    if isinstance(study, ErrorFieldStudy):
        measurement = Measurement.load(params, artifact, None, sampler, processes)
        run_error_field(measurement, study, sampler, samples, stage_dir("encode"), out)
        return
    guided = guided_by(sampler, study.guidance, None if study.guide_step is None else artifact, study.guide_step)
    points = plan_points(guided, study.scales, [(0.0, 1.0)], [sampler.evaluations], study.parts)
    run_curve(Measurement.load(params, artifact, None, guided, processes), points, samples, out, study.parts)


def studies(variant: str, params: Params, out: Path, processes: Processes) -> None:
    """Measure the studies of a variant and write them to `out`; what an interrupted run measured is kept."""
    work = resume_dir("studies", _resume_key(variant, params))
    with processes.resumable_dir(out, work, stage_code("studies")) as folder:
        for name, study in params.studies_of(variant).items():
            measure_study(study, params, folder / name, processes)
        if processes.first and (codes := mixed_codes(work)):
            write_json(folder / "codes.json", codes)


def _resume_key(variant: str, params: Params) -> str:
    """Return the hash of all that shapes the result; points are named after the weights and references that made them."""
    trained = stage_dir("train", variant)
    manifest = DenoiserManifest.read(trained)
    weights = [snapshot_digest(trained, snapshot) for snapshot in manifest.snapshots]
    plain = {name: study.model_dump(mode="json") for name, study in params.studies_of(variant).items()}
    references = [ShardReader(stage_dir("reference") / name / "features").digest for name in params.reference.extractors]
    return fingerprint(variant, manifest.variant, plain, params.evaluate, params.reference, weights, references)


@exits_cleanly
def main() -> None:
    """Run the stage in the project's folder."""
    parser = argparse.ArgumentParser(description="Measure the studies of one variant (outputs/studies/<variant>).")
    parser.add_argument("--variant", required=True, help="a key of `variants` in params.yaml")
    name = parser.parse_args().variant
    params = begin_stage("studies", name)
    spread()
    processes = Processes.join()
    studies(name, params, stage_dir("studies", name), processes)
    processes.leave()


if __name__ == "__main__":
    main()
