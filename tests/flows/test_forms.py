"""The forms of the deployments."""

from pathlib import Path
from typing import Any

import pytest
from prefect.flows import Flow
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools import validate
from prefect.utilities.schema_tools.validation import ValidationError

from flows import studies
from flows.worker import DEPLOYED
from sfd_core.experiment.grid import CURRENT, Space, base_values, plan_points
from sfd_core.experiment.presets import preset_names
from sfd_core.host.errors import ConfigError

ROOT = Path(__file__).parents[2]


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
        ("guidance sweep", {"samples": 4}),
        ("path sweep", {"samples": 4}),
        ("path sweep", {"corners": [1.1]}),
        ("search", {"ranges": {"delta_t": []}}),
        ("search", {"method": "luck"}),
        ("path sweep", {"offsets": [-2]}),
    ],
)
def test_the_server_refuses_wrong_values_of_a_form(name: str, values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=f"Validation failed for field '{next(iter(values))}"):
        validate(values, form(name), raise_on_error=True)


@pytest.mark.parametrize(
    ("asked", "changes", "problem"),
    [
        ({"parts": "semantic"}, {}, "parts is semantic, but variant lightningdit has no semantics"),
        ({"evaluations": [10, 20]}, {"evaluate.sampler.solver": "dopri5"}, "evaluations would change nothing: dopri5 chooses"),
    ],
)
def test_a_guidance_sweep_over_what_changes_nothing_is_refused_before_it_trains(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], changes: dict[str, Any], problem: str
) -> None:
    measured: list[Any] = []
    monkeypatch.setattr(studies, "_measure", lambda study, *_: measured.append(study))
    studies.guidance_sweep.fn(variant="lightningdit", **asked)
    space = Space(["lightningdit"], {}, [], changes | measured[0].changes)
    (point,) = plan_points(base_values(CURRENT, ROOT), space, "code", ROOT)
    with pytest.raises(ConfigError, match=problem):
        measured[0].plan(point)
