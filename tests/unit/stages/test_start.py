"""A stage's parameters are those of its start, or nothing is written."""

import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import yaml
from emoji import emoji_values, emoji_with

from sfd_core.host import paths
from sfd_core.host.errors import ConfigError
from sfd_core.host.paths import atomic_dir, stage_dir
from sfd_core.host.resume import resumable_dir
from sfd_core.stages.start import begin_stage


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paths, "_CHECKS", [])
    shutil.copyfile(Path(__file__).parents[3] / "dvc.yaml", tmp_path / "dvc.yaml")
    write(emoji_values())
    return tmp_path


def write(values: dict[str, Any]) -> None:
    Path("params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))


def run(output: AbstractContextManager[Path], values: dict[str, Any]) -> None:
    """Write an output while params.yaml gets other values."""
    with output as folder:
        (folder / "done").touch()
        write(values)


@pytest.mark.parametrize("key", ["train.snapshots", "variants.sfd.delta_t"])
def test_an_edited_value_of_the_stage_leaves_its_outputs_as_they_were(project: Path, key: str) -> None:
    out = stage_dir("train", "sfd")
    out.mkdir(parents=True)
    (out / "old").touch()
    begin_stage("train", "sfd")
    name = "train" if key.startswith("train") else "variants.sfd"
    with pytest.raises(ConfigError, match=f"{name} of params.yaml changed while stage train ran"):
        run(atomic_dir(out), emoji_with(key, 1))
    assert [path.name for path in project.glob("outputs/train/sfd/*")] == ["old"]
    assert not list(project.rglob("*.partial"))


def test_resumable_work_stays_for_the_old_values(project: Path) -> None:
    begin_stage("encode")
    with pytest.raises(ConfigError, match=r"encode of params\.yaml changed"):
        run(resumable_dir(stage_dir("encode"), Path("work")), emoji_with("encode.seed", 7))
    assert (project / "work" / "out" / "done").exists()
    run(resumable_dir(stage_dir("encode"), Path("work")), emoji_values())
    assert (stage_dir("encode") / "done").exists()


@pytest.mark.parametrize("key", ["report.title", "variants.sync.seed", "engine.keep_last"])
def test_values_of_other_stages_may_be_edited(project: Path, key: str) -> None:
    begin_stage("train", "sfd")
    run(atomic_dir(stage_dir("train", "sfd")), emoji_with(key, "Other" if key == "report.title" else 5))
    assert (project / "outputs/train/sfd/done").exists()


def test_a_file_that_is_being_edited_is_no_reason_to_record_anything(project: Path) -> None:
    begin_stage("train", "sfd")
    with pytest.raises(ConfigError, match="not valid YAML: line 1"), atomic_dir(stage_dir("train", "sfd")):
        (project / "params.yaml").write_text("train: [")
    assert not (project / "outputs/train/sfd").exists()


@pytest.mark.parametrize("stage", ["train", "evaluate"])
@pytest.mark.usefixtures("project")
def test_an_unknown_variant_is_told_with_those_that_there_are(stage: str) -> None:
    with pytest.raises(ConfigError, match=r"unknown variant 'nope'; params\.yaml defines dit, lightningdit"):
        begin_stage(stage, "nope")


def test_outputs_behind_a_link_are_refused_before_anything_runs(project: Path) -> None:
    (project / "elsewhere").mkdir()
    (project / "outputs").symlink_to("elsewhere")
    with pytest.raises(ConfigError, match="outputs is a link, behind which DVC records nothing"):
        begin_stage("train", "sfd")
