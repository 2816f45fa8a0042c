"""When a training keeps snapshots."""

from sfd_core.experiment.params import TrainParams

SHAPES_RESULTS = True


def snapshot_steps(train: TrainParams) -> tuple[int, ...]:
    """Return the steps whose snapshots are kept: evenly spaced, the last one at the end."""
    steps, count = train.optimisation.steps, min(train.snapshots, train.optimisation.steps)
    return tuple(round(steps * (number + 1) / count) for number in range(count))
