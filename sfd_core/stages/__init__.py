"""One thin main a DVC stage: read its group of `params.yaml`, build, call, write its outputs."""
