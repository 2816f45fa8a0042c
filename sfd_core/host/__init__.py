"""What any program needs of its machine: paths, errors, random numbers, processes, locks, progress."""

SHAPES_RESULTS = False
