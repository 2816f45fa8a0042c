"""What every program needs from its machine: paths, errors, seeds, processes, locks, resumable work, progress."""

SHAPES_RESULTS = False
