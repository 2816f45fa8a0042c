"""What an experiment is: typed parameters, presets, inputs, grids of experiments, the identity of the code."""

SHAPES_RESULTS = False
