"""From seeds to images: the pipeline, the artifact it loads, a run as pictures."""
