"""The fingerprint of the code, in several processes."""

import subprocess
import sys

import pytest

from sfd_core.training.checkpoint import code_fingerprint


@pytest.mark.slow
def test_the_fingerprint_is_the_same_in_another_process() -> None:
    program = "from sfd_core.training.checkpoint import code_fingerprint; print(code_fingerprint())"
    prints = {subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout for _ in range(2)}
    assert len(prints) == 1
    assert len(code_fingerprint()) == 16
