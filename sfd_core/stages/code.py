"""Stage `code`: which code makes the result of each stage.

    python -m sfd_core.stages.code

writes `outputs/code/<stage>.json`: a hash that changes only with what can change a result, the hash of each module, and the
versions of the libraries. All other stages depend on their file and on no file of code. See `experiment.code`.
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from sfd_core.experiment.code import NOT_INSTALLED, PACKAGE, stage_code, stage_names
from sfd_core.host.errors import ConfigError, ResourceError, exits_cleanly
from sfd_core.host.paths import atomic_dir, stage_dir, write_json
from sfd_core.host.resume import MOST_NAMED


@exits_cleanly
def main() -> None:
    """Run the stage in the project's folder."""
    argparse.ArgumentParser(description="Which code makes the result of each stage (outputs/code).").parse_args()
    codes = {stage: stage_code(stage) for stage in stage_names()}
    absent = sorted({name for code in codes.values() for name, version in code.libraries.items() if version == NOT_INSTALLED})
    if beside := [name for name in absent if Path(name).is_dir() or Path(f"{name}.py").is_file()]:
        raise ConfigError(
            f"a stage imports {', '.join(beside[:MOST_NAMED])} from beside {PACKAGE}, but only code inside {PACKAGE} is "
            f"tracked: a change outside would run nothing again; move it there and import {PACKAGE}.{beside[0]}"
        )
    if absent:
        raise ResourceError(
            f"{sys.executable} has no {', '.join(absent[:MOST_NAMED])}, so it cannot run the stages; "
            "put .venv/bin first in PATH, as `make` does, or install requirements.lock"
        )
    with atomic_dir(stage_dir("code")) as folder:
        for stage, code in codes.items():
            write_json(folder / f"{stage}.json", asdict(code))


if __name__ == "__main__":
    main()
