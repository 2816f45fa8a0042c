"""A shard whose writers are killed and started again."""

import random
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from same_outputs import bytes_below

PROGRAM = textwrap.dedent("""
    import sys
    from pathlib import Path
    import numpy as np
    from sfd_core.data.store.pieces import PiecedShard
    from sfd_core.data.store.shards import FieldSpec
    from sfd_core.host.processes import Processes
    shard = PiecedShard(Path(sys.argv[1]), {"x": FieldSpec("float64", (5000,))}, 100, 3)
    print(shard.rows_kept(), flush=True)
    for piece in shard.left(Processes(0, 1)):
        with shard.writer(piece) as writer:
            for row in piece.rows:
                sys.stdin.readline()
                writer.append(x=np.random.default_rng(row).normal(size=(1, 5000)))
                print(row, flush=True)
    shard.join({"all": 1})
""")


@pytest.mark.slow
def test_kills_at_random_moments_change_no_byte(tmp_path: Path) -> None:
    chance, kept = random.Random(0), []

    def program(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / name)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    for _ in range(4):
        with program("killed") as process:
            assert process.stdin is not None
            assert process.stdout is not None
            kept.append(int(process.stdout.readline()))
            # The program may append 20 rows and dies at any moment after the tenth or so, also while it writes one.
            process.stdin.write("\n" * 20)
            process.stdin.flush()
            for _ in range(chance.randrange(8, 12)):
                process.stdout.readline()
            time.sleep(chance.uniform(0, 0.002))
            process.kill()
    for name in ("killed", "whole"):
        with program(name) as process:
            output, _ = process.communicate("\n" * 100)
            assert process.returncode == 0
            kept.append(int(output.split()[0]))
    *killed, whole = kept
    assert whole == killed[0] == 0
    assert killed == sorted(set(killed))
    assert bytes_below(tmp_path / "killed") == bytes_below(tmp_path / "whole")
