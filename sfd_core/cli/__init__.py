"""The command `sfd`: look at, sample from and judge what the pipeline made, and run it with other values."""

SHAPES_RESULTS = False
