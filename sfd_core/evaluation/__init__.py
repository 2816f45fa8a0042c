"""From images to numbers.

The path of a number, in four files:

1. `measurement`: draw images batch by batch and keep their features, resumable.
2. `evaluator`: the extractors of an experiment with their reference; features in, numbers with their protocol out.
3. `extractors`: the networks, images to features (`inception` is one more).
4. `metrics`: features to values, such as the Fréchet distance.

Beside the path: `reference` (the statistics of real images, which stage `reference` writes; `adm` reads those of
guided-diffusion), `rerun` (numbers measured again from a file), `elsewhere` (images that another program
drew), `convergence`, `neighbours`, `bootstrap`.
"""
