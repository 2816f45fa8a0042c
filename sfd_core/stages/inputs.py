"""Stage `inputs`: what lies at the paths of params.yaml, which DVC does not own.

    python -m sfd_core.stages.inputs

writes `outputs/inputs/<stage>.json`: a hash for each path that the stage reads. The stages depend on their file, so a result
is never taken for one of other images or weights. `sfd reproduce`, experiments and flows run this stage whenever the files
are no longer those that it recorded; `dvc repro` does so when a path in params.yaml changes. See `experiment.inputs`.
"""

import argparse

from sfd_core.experiment.inputs import input_digests, named_inputs, require_none_in_outputs
from sfd_core.experiment.params import load_params
from sfd_core.host.errors import exits_cleanly
from sfd_core.host.paths import atomic_dir, stage_dir, write_json


@exits_cleanly
def main() -> None:
    """Run the stage in the project's folder."""
    argparse.ArgumentParser(description="What lies at the paths that each stage reads (outputs/inputs).").parse_args()
    params = load_params()
    require_none_in_outputs(params)
    digests = input_digests(named_inputs(params))
    with atomic_dir(stage_dir("inputs")) as folder:
        for stage, found in digests.items():
            write_json(folder / f"{stage}.json", found)


if __name__ == "__main__":
    main()
