"""The forms of the deployments, and the order of stages in `reproduce`."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.flows import Flow
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools import validate
from prefect.utilities.schema_tools.validation import ValidationError

from flows.comparison import Row, best, leading, summary, table
from flows.deployments import DEPLOYED
from flows.pipeline import stage_graph
from sfd_core.experiment.grid import Space, plan_points
from sfd_core.experiment.presets import preset_names

ROOT = Path(__file__).parents[2]
VALUES: dict[str, Any] = yaml.safe_load((ROOT / "presets" / "emoji.yaml").read_text())


def form(name: str) -> dict[str, Any]:
    return parameter_schema(DEPLOYED[name].fn).model_dump_for_openapi()


@pytest.mark.parametrize("name", DEPLOYED)
def test_every_field_of_a_form_is_described_and_has_a_default(name: str) -> None:
    fields = form(name)["properties"]
    assert fields
    for key, field in fields.items():
        assert field.get("description"), key
        assert "default" in field, key
    flow: Flow[..., Any] = DEPLOYED[name]
    assert flow.description


def test_forms_offer_presets_and_sizes_by_name() -> None:
    assert set(preset_names(ROOT / "presets")) < set(form("sweep")["properties"]["preset"]["enum"])
    assert "XL" in str(form("model-size sweep"))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("offset sweep", {"delta_t": [0.1, 1.2]}),
        ("offset sweep", {"delta_t": []}),
        ("offset sweep", {"preset": "nothing"}),
        ("offset sweep", {"name": "two words"}),
        ("offset sweep", {"steps": 0}),
        ("model-size sweep", {"sizes": ["gigantic"]}),
        ("seeds", {"seeds": [-1]}),
        ("guidance sweep", {"intervals": [[0.1]]}),
        ("guidance sweep", {"guidance": "none"}),
    ],
)
def test_the_server_refuses_wrong_values_of_a_form(name: str, values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=f"Validation failed for field '{next(iter(values))}"):
        validate(values, form(name), raise_on_error=True)


def test_stages_wait_for_those_whose_outputs_they_read() -> None:
    graph = stage_graph(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"], ["dit", "sfd"])
    assert graph["prepare"] == set()
    assert graph["encode"] == {"prepare", "texture_vae", "features", "semantic_vae"}
    assert graph["train@sfd"] == {"prepare", "features", "semantic_vae", "encode"}
    assert graph["evaluate@dit"] == {"prepare", "texture_vae", "encode", "reference", "train@dit"}
    assert {"train@dit", "train@sfd", "evaluate@dit", "evaluate@sfd", "reference"} < graph["report"]


def rows() -> list[Row]:
    points = plan_points(VALUES, Space(["sfd"], {"delta_t": [0.0, 0.3, 1.0]}, [], {}), "code", ROOT)
    numbers = [{"fd_b": 3.0, "fd_a": 1.0, "kid_b": 0.1}, {"fd_b": 2.0, "fd_a": 9.0, "kid_b": 0.2}]
    made = [Row(point, "computed", {"numbers": found}) for point, found in zip(points, numbers, strict=False)]
    return [*made, Row(points[2], "failed", {}, "out of memory")]


def test_points_are_ranked_by_the_first_distance_and_failures_say_why() -> None:
    assert leading(rows()) == "fd_b"
    found = best(rows())
    assert found is not None
    assert found.point.settings["delta_t"] == 0.3
    words = summary("offsets", rows(), "[runs](http://mlflow)")
    assert "2 computed, 1 failed" in words
    assert "git checkout refs/sfd/offsets/sfd-delta_t-0p3-seed-0" in words
    assert "sfd-delta_t-1-seed-0 failed" in words
    assert "out of memory" in words
    assert best([rows()[2]]) is None


def test_the_table_shows_what_was_varied_what_became_of_it_and_the_numbers() -> None:
    first, _, last = table(rows())
    assert first["delta_t"] == 0.0
    assert first["fd_b"] == 3.0
    assert last["status"] == "failed"
