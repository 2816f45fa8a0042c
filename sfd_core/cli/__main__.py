"""`python -m sfd_core.cli` is the command `sfd`."""

from sfd_core.cli.main import main

main()
