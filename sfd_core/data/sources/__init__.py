"""Sources of images, one file per source."""
