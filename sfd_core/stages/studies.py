"""Stage `studies`: the curves of trained denoisers over offsets and guidance scales that `studies` of params.yaml names.

    python -m sfd_core.stages.studies

writes `outputs/studies/<name>/`: a table, a figure and the numbers of every point. Points that are measured already are kept.
Every GPU, or as many processes as `SFD_PROCESSES` says, takes its share of the work; the numbers are the same.
"""

import argparse
import shutil
from pathlib import Path

from sfd_core.evaluation.rerun import Measurement
from sfd_core.experiment.code import require_recorded_code
from sfd_core.experiment.params import OffsetStudy, Params, StudyParams, load_params
from sfd_core.host.errors import exits_cleanly
from sfd_core.host.paths import stage_dir
from sfd_core.host.processes import Processes, spread
from sfd_core.studies.guidance import guided_by, plan_points, run_curve
from sfd_core.studies.offsets import plan_offsets, run_offsets


def measure_study(study: StudyParams, params: Params, out: Path, processes: Processes) -> None:
    """Measure every point of a study that is not in `out` yet, and write its table and figure there."""
    artifact, samples, sampler = stage_dir("train", study.variant), params.evaluate.final_samples, params.evaluate.sampler
    if isinstance(study, OffsetStudy):
        measurement = Measurement.load(params, artifact, None, sampler, processes)
        run_offsets(measurement, plan_offsets(sampler, study.offsets), samples, out)
        return
    guided = guided_by(sampler, study.guidance, None if study.guide_step is None else artifact, study.guide_step)
    points = plan_points(guided, study.scales, [(0.0, 1.0)], [sampler.evaluations], study.parts)
    run_curve(Measurement.load(params, artifact, None, guided, processes), points, samples, out)


def forget_others(out: Path, names: set[str]) -> None:
    """Delete what is there of studies that no longer exist."""
    for folder in out.iterdir():
        if folder.name not in names:
            shutil.rmtree(folder)


@exits_cleanly
def main() -> None:
    """Run the stage in the project's folder."""
    argparse.ArgumentParser(description="Measure the studies of params.yaml (outputs/studies).").parse_args()
    require_recorded_code("studies", stage_dir("code") / "studies.json")
    params = load_params()
    spread()
    processes = Processes.join()
    out, studies = stage_dir("studies"), params.active_studies()
    if processes.first:
        out.mkdir(parents=True, exist_ok=True)
        forget_others(out, set(studies))
    for name, study in studies.items():
        measure_study(study, params, out / name, processes)
    processes.leave()


if __name__ == "__main__":
    main()
