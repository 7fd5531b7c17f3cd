"""A training that keeps a checkpoint after every part, as a script: `killed.py FOLDER KIND`. It says when it begins."""

import os
import sys
import time
from pathlib import Path
from unittest import mock

import torch

from resumed import Training

EPOCHS, PAUSE = 20, 0.002  # seconds after a part, so that there are moments enough to be killed at


def save(what, path):
    """Whole, or not at all: a file takes the place of the one before in one step."""
    torch.save(what, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


@mock.patch("pyromancy.run.em._PART", 0.0)
def main(folder, kind):
    training, checkpoint = Training(kind), folder / "checkpoint.pt"
    if checkpoint.exists():
        torch.manual_seed(99)  # another process is elsewhere
        training.load(torch.load(checkpoint, weights_only=True))
    print("begins", flush=True)
    while training.epoch < EPOCHS:
        for _ in training.em.epoch(*training.data, batch_size=8, generator=training.generator):
            save(training.state(), checkpoint)
            time.sleep(PAUSE)
        training.epoch += 1
        training.rates.step()
        save(training.state(), checkpoint)
    save(training.result(), folder / "result.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
