"""Errors a user can act on: what is wrong with which value, why, and what to do. Most exit with code 2."""

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec

P = ParamSpec("P")

USER_ERROR_EXIT_CODE = 2
BUSY_EXIT_CODE = 76
"""Another process is doing the same training: a sweep waits for it and takes its result from the cache."""
PREEMPTED_EXIT_CODE = 85
"""Exit code of a training that wrote a checkpoint after SIGTERM and can be resumed (HTCondor's default for this case)."""


class SFDError(Exception):
    """Base of all errors that the user can fix; the message says which value is wrong, why, and what to do."""


class ConfigError(SFDError):
    """A value of `params.yaml` or of the command line cannot be used."""


class DataError(SFDError):
    """An input file is missing, unreadable, truncated, empty or different from its manifest."""


class IdentityError(SFDError):
    """Two artifacts must share an encoder, VAE or set of latents, but do not."""


class ResourceError(SFDError):
    """The machine lacks disk, memory, a device or a weights file that the next step needs."""


class BusyError(ResourceError):
    """Another process is doing the same work; its result can be used once it has ended."""


class NumericsError(SFDError):
    """A tensor that must be finite is not."""


class Preempted(Exception):  # noqa: N818 (nothing went wrong)
    """A training was asked to stop and wrote a checkpoint."""


def exits_cleanly(main: Callable[P, None]) -> Callable[P, None]:
    """Turn an `SFDError` that leaves `main` into one line on stderr and exit code 2, or 76 for a `BusyError`.

    `Preempted` becomes exit code 85.
    """

    @functools.wraps(main)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            main(*args, **kwargs)
        except SFDError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(BUSY_EXIT_CODE if isinstance(error, BusyError) else USER_ERROR_EXIT_CODE)
        except Preempted as message:
            print(message, file=sys.stderr)
            sys.exit(PREEMPTED_EXIT_CODE)

    return guarded
