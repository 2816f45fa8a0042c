"""A clone as a place of work: git worktrees, DVC and other programs, the pipeline beside the project, the journal of runs."""

SHAPES_RESULTS = False
