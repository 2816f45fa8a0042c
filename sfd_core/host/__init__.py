"""What every program needs from its machine: paths, errors, seeds, processes, locks, progress."""
