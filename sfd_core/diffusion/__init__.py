"""The diffusion processes as pure functions of tensors and callables: no model, no file, no global random state."""
