"""This worker's concurrency limit in Prefect: created at start-up, changed in the UI, which also shows its use.

Locks of the machine (`sfd_core.host.machine`) hold the slots: a lease of Prefect outlives a killed process by minutes, and a
server that restarts forgets it.
"""

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, GlobalConcurrencyLimitUpdate
from prefect.exceptions import ObjectNotFound

from sfd_core.host import machine


def make_limit() -> int:
    """Create this worker's limit unless it exists, and return its value."""
    with get_client(sync_client=True) as client:
        try:
            return int(client.read_global_concurrency_limit_by_name(machine.limit_name()).limit)
        except ObjectNotFound:
            client.create_global_concurrency_limit(
                GlobalConcurrencyLimitCreate(name=machine.limit_name(), limit=machine.slot_count())
            )
            return machine.slot_count()


def slots() -> int:
    """Return how many trainings this worker may run now: the limit's value, 0 while it is switched off."""
    with get_client(sync_client=True) as client:
        try:
            limit = client.read_global_concurrency_limit_by_name(machine.limit_name())
        except (ObjectNotFound, httpx.HTTPError):  # a server that is down holds up no training
            return machine.slot_count()
        return int(limit.limit) if limit.active else 0


def show_used(used: int) -> None:
    """Show in the UI how many slots are taken."""
    with get_client(sync_client=True) as client:
        client.update_global_concurrency_limit(machine.limit_name(), GlobalConcurrencyLimitUpdate(active_slots=used))
