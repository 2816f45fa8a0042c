"""A file is hashed once a machine, and again as soon as it may be another one."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sfd_core.data.store import verified
from sfd_core.data.store.verified import verify_files

ROOT = Path(__file__).parents[4]
LONG_AGO_NS = 1_600_000_000_000_000_000


def test_several_processes_may_verify_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    contents = {name: name.encode() * 1000 for name in "abcdef"}
    Path("s").mkdir()
    for name, content in contents.items():
        (Path("s") / name).write_bytes(content)
        os.utime(Path("s") / name, ns=(LONG_AGO_NS, LONG_AGO_NS))
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    program = (
        "import json, sys; from pathlib import Path; from sfd_core.data.store.verified import verify_files\n"
        "for _ in range(20): verify_files(Path('s'), json.loads(sys.argv[1]))"
    )
    halves = [dict(list(hashes.items())[:4]), dict(list(hashes.items())[2:])]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    running = [subprocess.Popen([sys.executable, "-c", program, json.dumps(half)], env=environment) for half in halves]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    for half in halves:
        verify_files(Path("s"), half)
    with monkeypatch.context() as patch:
        patch.setattr(verified, "_compare", None)  # all of it is noted, so nothing is hashed
        verify_files(Path("s"), hashes)
    assert len(list(Path(".sfd/verified").iterdir())) == 1
