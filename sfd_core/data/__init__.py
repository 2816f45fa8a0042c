"""Sources of images, and the one format of arrays on disk."""
