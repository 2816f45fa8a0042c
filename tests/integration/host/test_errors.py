"""How a program ends whose output nobody reads to the end."""

import subprocess
import sys

ENDLESS = """
from sfd_core.host.errors import exits_cleanly
@exits_cleanly
def main():
    while True:
        print("line", flush=True)
main()
"""


def test_a_reader_that_has_enough_is_no_error() -> None:
    with subprocess.Popen([sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        program.stdout.readline()
        program.stdout.close()
        assert program.stderr.read() == b""
        assert program.wait() == 141
