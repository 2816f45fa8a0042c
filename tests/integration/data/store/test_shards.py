"""Shards in processes with limits of their own, or killed while they write."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from small_shards import leftovers, write
from sparse_latents import lay_out

from sfd_core.data.store.shards import ShardReader
from sfd_core.host.errors import DataError

ROOT = Path(__file__).parents[4]


@pytest.mark.parametrize(("hard", "said"), [(4096, "179700"), (64, "1200 files, so 1460")])
def test_a_shard_may_have_more_files_than_a_process_usually_opens(tmp_path: Path, hard: int, said: str) -> None:
    write(tmp_path / "s", rows=600, rows_per_file=1, batch=600)
    program = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        from sfd_core.data.store.shards import ShardReader
        from sfd_core.host.errors import SFDError
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, int(sys.argv[2])))
        try:
            print(int(ShardReader(Path(sys.argv[1]))["label"][:].sum()))
        except SFDError as error:
            print(error)
    """)
    command = [sys.executable, "-c", program, str(tmp_path / "s"), str(hard)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said in ended.stdout, ended.stderr


def test_memory_does_not_grow_with_the_number_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc of Linux")
    program = textwrap.dedent("""
        import sys
        from pathlib import Path
        import numpy as np
        from sfd_core.data.store.shards import ShardReader

        def memory():
            lines = Path("/proc/self/status").read_text().splitlines()
            return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) << 10

        before = memory()
        array = ShardReader(Path(sys.argv[1]))["z_sem"].flattened()
        for rows in np.array_split(np.random.default_rng(0).permutation(len(array)), len(array) // 64):
            array.take(rows)
        print(memory() - before)
    """)
    monkeypatch.chdir(tmp_path)
    grown, few, many = [], 256, 2_560
    for images in (few, many):
        lay_out(Path(str(images)), images)
        command = [sys.executable, "-c", program, str(images)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        grown.append(int(ended.stdout))
    assert grown[1] < grown[0] + (8 << 20) < many * 2 * 16 * 16 * 16 * 4 // 8


def test_a_killed_writer_leaves_a_partial_folder_that_the_next_write_removes(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        import numpy as np
        from sfd_core.data.store.shard_writer import ShardWriter
        from sfd_core.data.store.shards import FieldSpec
        with ShardWriter(Path(sys.argv[1]), {"x": FieldSpec("int64", ())}, {}) as writer:
            writer.append(x=np.arange(1000))
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    run = subprocess.run([sys.executable, "-c", script, str(tmp_path / "s")], check=False, timeout=60)
    assert run.returncode == -signal.SIGKILL
    assert [name.endswith(".partial") for name in leftovers(tmp_path)] == [True]
    with pytest.raises(DataError, match="does not exist; run the stage"):
        ShardReader(tmp_path / "s")
    write(tmp_path / "s")
    assert leftovers(tmp_path) == ["s"]
    assert len(ShardReader(tmp_path / "s")) == 10
