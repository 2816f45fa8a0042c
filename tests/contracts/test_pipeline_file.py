"""dvc.yaml against the configuration, the files of the stages and what they import."""

import ast
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from sfd_core.experiment.params import Params, load_params

ROOT = Path(__file__).parents[2]
PIPELINE: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
NO_RESULT_DEPENDS_ON = {
    "sfd_core/__init__.py",
    "sfd_core/experiment/code.py",
    "sfd_core/experiment/params.py",
    "sfd_core/data/store/verified.py",
    "sfd_core/host/errors.py",
    "sfd_core/host/locks.py",
    "sfd_core/host/paths.py",
    "sfd_core/host/processes.py",
    "sfd_core/stages/outlook.py",
    "sfd_core/host/progress.py",
    *(
        path.relative_to(ROOT).as_posix()
        for name in ("storage", "tracking")
        for path in (ROOT / "sfd_core" / name).glob("*.py")
    ),
    "sfd_core/training/progress.py",
}
"""Checks, messages, places, sharing of work and progress: a change there leaves every result as it is."""


def paths(entries: list[Any]) -> list[str]:
    """Paths of outs, metrics or plots, whether or not they carry options."""
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


def written(stage: str) -> list[str]:
    return [path for kind in ("outs", "metrics", "plots") for path in paths(PIPELINE[stage].get(kind, []))]


def imported(path: Path) -> Iterator[Path]:
    """Files of sfd_core that a file imports, with the packages they lie in."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "sfd_core":
                for length in range(1, len(parts) + 1):
                    base = ROOT.joinpath(*parts[:length])
                    yield from (file for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file())


def runs_nothing(path: Path) -> bool:
    """Whether a file holds a docstring only."""
    return path.name == "__init__.py" and len(ast.parse(path.read_text()).body) <= 1


def holds_no_code(folder: Path) -> bool:
    """Whether a folder beside code holds what the code reads: templates, styles, scripts of a page."""
    return folder.is_dir() and folder.name != "__pycache__" and not list(folder.rglob("*.py"))


def code_of(stage: str) -> set[str]:
    """Every file of code that can change what a stage writes."""
    found: set[Path] = set()
    left = [ROOT / "sfd_core" / "stages" / f"{stage}.py"]
    while left:
        path = left.pop()
        if path not in found:
            found.add(path)
            if path.relative_to(ROOT).as_posix() not in NO_RESULT_DEPENDS_ON:
                left.extend(imported(path))
    found |= {folder for path in found for folder in path.parent.iterdir() if holds_no_code(folder)}
    names = {path.relative_to(ROOT).as_posix() for path in found if not runs_nothing(path)}
    return names - NO_RESULT_DEPENDS_ON


def kinds(annotation: Any) -> tuple[Any, ...]:
    """The kinds of a group that is one of several, else what was given."""
    return get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)


def is_group(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def test_stages_are_named_like_their_groups_of_parameters_and_their_files() -> None:
    groups = {name for name, field in Params.model_fields.items() if all(map(is_group, kinds(field.annotation)))}
    groups.remove("engine")  # how trainings are computed, which no stage's result depends on
    files = [path.stem for path in (ROOT / "sfd_core" / "stages").glob("*.py") if "def main(" in path.read_text()]
    assert sorted(PIPELINE) == sorted(groups) == sorted(files)


@pytest.mark.parametrize("stage", PIPELINE)
def test_the_command_of_a_stage_is_its_file(stage: str) -> None:
    words = PIPELINE[stage]["cmd"].split()
    assert words[:3] == ["python", "-m", f"sfd_core.stages.{stage}"]
    assert words[3:] == (["--variant", "${item.variant}"] if "matrix" in PIPELINE[stage] else [])


@pytest.mark.parametrize("stage", PIPELINE)
def test_every_parameter_of_a_stage_exists(stage: str) -> None:
    values = load_params(ROOT / "params.yaml").model_dump()
    for key in PIPELINE[stage]["params"]:
        found: Any = values
        for part in key.replace("${item.variant}", "sfd").split("."):
            assert part in found, f"{stage} depends on the parameter {key}, which does not exist"
            found = found[part]


@pytest.mark.parametrize("stage", PIPELINE)
def test_code_under_a_stage_is_what_it_imports(stage: str) -> None:
    declared = {path for path in PIPELINE[stage]["deps"] if path.startswith("sfd_core/")}
    expected = code_of(stage)
    listing = "\n".join(f"      - {path}" for path in sorted(expected))
    assert declared == expected, f"in dvc.yaml, the code of {stage} has to be:\n{listing}"


@pytest.mark.parametrize("stage", PIPELINE)
def test_a_stage_writes_to_its_own_folder_and_caches_all_of_it(stage: str) -> None:
    folder = "report" if stage == "report" else f"outputs/{stage}" + ("/${item.variant}" if "matrix" in PIPELINE[stage] else "")
    for path in written(stage):
        assert path == folder or path.startswith(f"{folder}/")
    for entry in [
        entry for kind in ("outs", "metrics", "plots") for entry in PIPELINE[stage].get(kind, []) if not isinstance(entry, str)
    ]:
        assert not {"cache", "persist"} & set(next(iter(entry.values())))


def test_every_input_is_some_stage_s_output() -> None:
    outputs = {path for stage in PIPELINE for path in written(stage)}
    for stage, entry in PIPELINE.items():
        for path in entry["deps"]:
            if path.startswith("outputs/"):
                assert any(out == path or out.startswith(f"{path}/") for out in outputs), (
                    f"{stage} needs {path}, which no stage writes"
                )
            else:
                assert (ROOT / path).exists()


def test_matrix_stages_run_over_the_active_variants() -> None:
    assert {stage for stage, entry in PIPELINE.items() if entry.get("matrix") == {"variant": "${active}"}} == {
        "train",
        "evaluate",
    }
    assert get_args(Params.model_fields["active"].annotation)
