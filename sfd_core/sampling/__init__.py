"""Seeds to images: the pipeline, trained denoisers on disk, and the denoising process as pictures."""
