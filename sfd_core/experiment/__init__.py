"""What is computed: typed parameters, presets, inputs, grids of experiments, the identity of the code."""

SHAPES_RESULTS = False
