"""DVC's command line for folders that share one cache, such as experiments and the points of a sweep.

    python -P sfd_core/workspace/shared_cache.py ARGUMENTS...

DVC takes the newest file in a folder of its run-cache for a result, even one that another process is still writing. That
process then fails, because the file was deleted as damaged, or this one, because the file got its final name. Here reading and
writing wait for each other.
"""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sfd_core.host.locks import locked


def _one_at_a_time(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def alone(cache: Any, *arguments: Any) -> Any:
        with locked(Path(cache.cache_dir).with_name("runs.lock")):
            return method(cache, *arguments)

    return alone


def main() -> None:
    """Run DVC with the arguments of the command line."""
    from dvc import cli
    from dvc.stage.cache import StageCache

    for name in ("_load", "save"):
        setattr(StageCache, name, _one_at_a_time(getattr(StageCache, name)))
    sys.exit(cli.main(sys.argv[1:]))


if __name__ == "__main__":
    main()
