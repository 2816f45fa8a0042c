"""Errors a user can act on: what is wrong with which value, why, and what to do. Most exit with code 2."""

import errno
import functools
import os
import re
import sys
from collections.abc import Callable
from typing import NoReturn, ParamSpec

P = ParamSpec("P")

USER_ERROR_EXIT_CODE = 2
INTERRUPTED_EXIT_CODE = 130
BROKEN_PIPE_EXIT_CODE = 141
"""As a shell reports a program that SIGINT or SIGPIPE ended."""
PLACES = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG}
"""Errors of a place on the disk that a user can change."""
LEFT_ALONE_EXIT_CODE = 75
"""A process ends only because another one of the same work did; that one reports the reason."""
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

    So are a place that cannot be read or written, a full disk, and a name that is not in UTF-8. `Preempted` becomes exit code
    85, Ctrl-C 130, and without a word the loss of another process of the same work 75, and a reader of the output that has
    enough, such as `| head`, 141.
    """

    @functools.wraps(main)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            main(*args, **kwargs)
            sys.stdout.flush()
        except SFDError as error:
            _exit(f"error: {error}", BUSY_EXIT_CODE if isinstance(error, BusyError) else USER_ERROR_EXIT_CODE)
        except Preempted as message:
            _exit(str(message), PREEMPTED_EXIT_CODE)
        except KeyboardInterrupt:
            _exit("interrupted; the same command goes on with what is kept", INTERRUPTED_EXIT_CODE)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end of the program
            sys.exit(BROKEN_PIPE_EXIT_CODE)
        except UnicodeEncodeError as error:
            name = next((part for part in re.split(r"[\0-\x1f]", error.object) if re.search("[\udc80-\udcff]", part)), None)
            if name is None:
                raise
            _exit(f"error: {name!a} is no name in UTF-8; rename that file or folder", USER_ERROR_EXIT_CODE)
        except (OSError, RuntimeError) as error:
            _exit_if_known(error)
            raise

    return guarded


def _exit_if_known(error: OSError | RuntimeError) -> None:
    """Exit for a place on the disk that a user can change, and where gloo, by which processes meet, says that one is gone."""
    if isinstance(error, OSError) and error.errno in PLACES:
        place = f"{error.filename}: " if error.filename else ""
        _exit(f"error: {place}{error.strerror}; make room there or choose another place", USER_ERROR_EXIT_CODE)
    if "gloo/transport" in str(error) and "Timed out" not in str(error):
        sys.stdout.flush()
        os._exit(LEFT_ALONE_EXIT_CODE)  # a thread of gloo that needs the interpreter while it ends would abort the process


def _exit(message: str, code: int) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(code)
