"""Judges of images: extractors of features, distances between sets of them, nearest training images, convergence."""
