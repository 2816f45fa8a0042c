"""`python -m sfd_core.cli` is the command `sfd`."""

from sfd_core.cli.main import run

if __name__ == "__main__":
    run()
