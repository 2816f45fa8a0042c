from pathlib import Path

import pytest

from sfd_core.config import Params, load_params


@pytest.fixture(scope="session")
def params() -> Params:
    return load_params(Path(__file__).parents[3] / "params.yaml")
