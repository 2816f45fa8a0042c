"""Threads of torch beside the one that makes batches, in a process of its own."""

import subprocess
import sys

PROGRAM = """
import threading, torch
from sfd_core.training.prefetch import Prefetcher
torch.set_num_threads(3)
with Prefetcher.running(lambda _: [{"x": torch.tensor(torch.get_num_threads())}], 0, 1, torch.device("cpu")) as batches:
    made, network = int(batches.next()[0]["x"]), torch.get_num_threads()
later = []
thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
thread.start()
thread.join()
print(made, network, *later)
"""


def test_batches_are_made_with_one_thread_and_all_other_threads_keep_theirs() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["1", "3", "3"]
