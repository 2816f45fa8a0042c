"""dvc.yaml against the parameters and the files of the stages."""

from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

from sfd_core.experiment.code import stage_names
from sfd_core.experiment.params import Params, load_params

ROOT = Path(__file__).parents[2]
PIPELINE: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def paths(entries: list[Any]) -> list[str]:
    """Paths of outs, metrics or plots, whether or not they carry options."""
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


def written(stage: str) -> list[str]:
    return [path for kind in ("outs", "metrics", "plots") for path in paths(PIPELINE[stage].get(kind, []))]


def kinds(annotation: Any) -> tuple[Any, ...]:
    """The kinds of a group that is one of several or null, else what was given."""
    if get_origin(annotation) is Annotated:
        return kinds(get_args(annotation)[0])
    if get_origin(annotation) not in (Union, UnionType):
        return (annotation,)
    return tuple(kind for one in get_args(annotation) if one is not NoneType for kind in kinds(one))


def is_group(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def test_stages_are_named_like_their_groups_of_parameters_and_their_files() -> None:
    groups = {name for name, field in Params.model_fields.items() if all(map(is_group, kinds(field.annotation)))}
    groups.remove("engine")  # how trainings are computed, which no stage's result depends on
    files = [path.stem for path in (ROOT / "sfd_core" / "stages").glob("*.py") if "def main(" in path.read_text()]
    assert sorted(PIPELINE) == sorted([*groups, "code", "inputs", "studies"]) == sorted(files)  # studies are groups by name


@pytest.mark.parametrize("stage", PIPELINE)
def test_the_command_of_a_stage_is_its_file(stage: str) -> None:
    words = PIPELINE[stage]["cmd"].split()
    assert words[:3] == ["python", "-m", f"sfd_core.stages.{stage}"]
    assert words[3:] == (["--variant", "'${item.variant}'"] if "matrix" in PIPELINE[stage] else [])


@pytest.mark.parametrize("stage", PIPELINE)
def test_every_parameter_of_a_stage_exists(stage: str) -> None:
    values = load_params(ROOT / "params.yaml").model_dump()
    for key in PIPELINE[stage].get("params", []):
        found: Any = values
        for part in key.replace("${item.variant}", "sfd").split("."):
            assert part in found, f"{stage} depends on the parameter {key}, which does not exist"
            found = found[part]


def test_one_stage_depends_on_files_of_code() -> None:
    assert PIPELINE["code"]["deps"] == ["sfd_core", "requirements.lock"]
    assert sorted(stage_names()) == sorted(PIPELINE)


@pytest.mark.parametrize("stage", [stage for stage in PIPELINE if stage != "code"])
def test_a_stage_depends_on_its_own_code_and_on_results(stage: str) -> None:
    code, *inputs = PIPELINE[stage]["deps"]
    assert code == f"outputs/code/{stage}.json"
    assert all(path.startswith("outputs/") or path == "docs/results" for path in inputs)
    assert not [path for path in inputs if path.startswith("outputs/code")]


@pytest.mark.parametrize("stage", PIPELINE)
def test_a_stage_writes_to_its_own_folder_and_caches_all_of_it(stage: str) -> None:
    folder = "report" if stage == "report" else f"outputs/{stage}" + ("/${item.variant}" if "matrix" in PIPELINE[stage] else "")
    for path in written(stage):
        assert path == folder or path.startswith(f"{folder}/")
    for entry in [
        entry for kind in ("outs", "metrics", "plots") for entry in PIPELINE[stage].get(kind, []) if not isinstance(entry, str)
    ]:
        assert stage == "inputs" or not {"cache", "persist"} & set(next(iter(entry.values())))


def test_every_input_is_some_stage_s_output() -> None:
    outputs = {path for stage in PIPELINE for path in written(stage)}
    for stage, entry in PIPELINE.items():
        for path in entry["deps"]:
            if path.startswith("outputs/"):
                assert any(f"{out}/".startswith(f"{path}/") or path.startswith(f"{out}/") for out in outputs), (
                    f"{stage} needs {path}, which no stage writes"
                )
            else:
                assert (ROOT / path).exists()


def test_matrix_stages_run_over_the_active_variants() -> None:
    over = {stage: entry["matrix"] for stage, entry in PIPELINE.items() if "matrix" in entry}
    assert over == {stage: {"variant": "${active}"} for stage in ("train", "studies", "evaluate")}
    assert set(load_params(ROOT / "params.yaml").active) <= set(load_params(ROOT / "params.yaml").variants)
