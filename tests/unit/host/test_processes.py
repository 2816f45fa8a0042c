import pytest

from sfd_core.host.errors import ConfigError
from sfd_core.host.processes import Processes, spread


@pytest.mark.parametrize("count", ["0", "-1", "two"])
def test_a_count_that_is_no_number_of_processes_is_refused(monkeypatch: pytest.MonkeyPatch, count: str) -> None:
    monkeypatch.setenv("SFD_PROCESSES", count)
    with pytest.raises(ConfigError, match=f"SFD_PROCESSES is '{count}', but must be a number of processes"):
        spread()


def test_a_launched_process_does_not_spread_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFD_PROCESSES", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    spread()


def test_every_item_is_some_process_s_and_no_two_s() -> None:
    items = list(range(11))
    shares = [Processes(rank, 3).share(items) for rank in range(3)]
    assert sorted(item for share in shares for item in share) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_processes_that_cannot_meet_are_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="start them with torchrun or accelerate launch"):
        Processes.join()
