"""The command `sfd`: sample from and evaluate what the pipeline made, and run it with other values."""

SHAPES_RESULTS = False
