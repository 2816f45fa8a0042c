from pathlib import Path

import pytest
from synthetic_outputs import write_outputs

from sfd_core.experiment.params import Params, load_params


@pytest.fixture(scope="session")
def params() -> Params:
    return load_params(Path(__file__).parents[3] / "params.yaml")


@pytest.fixture(scope="session")
def written(params: Params, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete tree of outputs, to be read only."""
    return write_outputs(tmp_path_factory.mktemp("written") / "outputs", params)
