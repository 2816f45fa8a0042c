"""How a program ends."""

import errno
import os

import pytest

from sfd_core.host.errors import ConfigError, exits_cleanly
from sfd_core.host.seeding import derive_seed


def ended(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    @exits_cleanly
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as raised:
        main()
    return raised.value.code, capsys.readouterr().err


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG])
def test_a_place_that_cannot_be_written_is_one_line(code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(OSError(code, os.strerror(code), "some/place"), capsys) == (
        2,
        f"error: some/place: {os.strerror(code)}; make room there or choose another place\n",
    )


def test_what_the_user_cannot_mend_keeps_its_traceback() -> None:
    @exits_cleanly
    def main() -> None:
        raise OSError(errno.EIO, "broken")

    with pytest.raises(OSError, match="broken"):
        main()


def test_an_interruption_is_one_line_and_a_mistake_another(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(KeyboardInterrupt(), capsys) == (130, "interrupted; the same command goes on with what is kept\n")
    assert ended(ConfigError("no"), capsys) == (2, "error: no\n")


def test_a_name_that_is_not_in_utf_8_is_one_line_and_another_text_is_a_fault(capsys: pytest.CaptureFixture[str]) -> None:
    @exits_cleanly
    def main() -> None:
        derive_seed(3, os.fsdecode(b"cat/b\xff.png"))

    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == "error: 'cat/b\\udcff.png' is no name in UTF-8; rename that file or folder\n"
    with pytest.raises(UnicodeEncodeError):
        exits_cleanly(lambda: print("ü".encode("ascii")))()
