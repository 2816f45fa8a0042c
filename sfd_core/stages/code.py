"""Stage `code`: which code makes the result of each stage.

    python -m sfd_core.stages.code

writes `outputs/code/<stage>.json`: a hash that changes only with what can change a result, the hash of each module, and the
versions of the libraries. All other stages depend on their file and on no file of code. See `experiment.code`.
"""

import argparse
from dataclasses import asdict

from sfd_core.experiment.code import stage_code, stage_names
from sfd_core.host.errors import exits_cleanly
from sfd_core.host.paths import atomic_dir, stage_dir, write_json


@exits_cleanly
def main() -> None:
    """Run the stage in the project's folder."""
    argparse.ArgumentParser(description="Which code makes the result of each stage (outputs/code).").parse_args()
    with atomic_dir(stage_dir("code")) as folder:
        for stage in stage_names():
            write_json(folder / f"{stage}.json", asdict(stage_code(stage)))


if __name__ == "__main__":
    main()
