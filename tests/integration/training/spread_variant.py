"""Train a variant as its stage does, in as many processes as torchrun starts; usage: spread_variant.py ENCODE OUT ENGINE."""

import json
import sys
from pathlib import Path

from denoisers import variant
from small_stages import TRAIN

from sfd_core.host.processes import Processes
from sfd_core.stages.train import TrainFolders, TrainInputs, train_variant
from sfd_core.training.loop import PLAIN_ENGINE


def main() -> None:
    encode, out, engine = Path(sys.argv[1]), Path(sys.argv[2]), PLAIN_ENGINE.model_copy(update=json.loads(sys.argv[3]))
    processes = Processes.join()
    with processes.first_first():
        inputs = TrainInputs.open(variant(), TrainFolders(encode, encode, encode, encode), verify=processes.first)
    train_variant("spread", variant(), TRAIN, inputs, out, engine, processes)
    processes.leave()


if __name__ == "__main__":
    main()
