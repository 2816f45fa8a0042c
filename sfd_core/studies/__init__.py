"""Studies of one trained denoiser: a grid of points, each measured once, a table and a figure."""
