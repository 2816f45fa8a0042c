from pathlib import Path

import pytest
from synthetic_outputs import write_outputs

from sfd_core.experiment.params import Params, load_params, parse_params
from sfd_core.reporting.sources import Outputs, read_outputs


@pytest.fixture(scope="session")
def params() -> Params:
    """The project's, with one more variant, a study of guidance and one of the error field."""
    values = load_params(Path(__file__).parents[3] / "params.yaml").model_dump(mode="json")
    values["active"] += ["cascade"]
    guided = {"kind": "guidance", "variant": "sfd", "guidance": "autoguidance", "guide_step": 600, "parts": "both"}
    values["studies"]["sfd-guided"] = guided | {"scales": [1.5, 2.0, 3.0]}
    field = {"kind": "error_field", "variant": "any_order", "points": 5, "images": 8, "weighting": "uniform"}
    values["studies"]["order"] = field | {"semantic_weights": [0.5, 1.0]}
    return parse_params(values)


@pytest.fixture(scope="session")
def written(params: Params, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete tree of outputs, to be read only."""
    return write_outputs(tmp_path_factory.mktemp("written") / "outputs", params)


@pytest.fixture(scope="session")
def outputs(params: Params, written: Path) -> Outputs:
    """What the report reads of it, without studies."""
    return read_outputs(params, written, written / "no-results")
