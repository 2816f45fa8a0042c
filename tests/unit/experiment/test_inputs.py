"""What an experiment names and is not there is told before anything runs."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sfd_core.cli.main import app
from sfd_core.experiment.inputs import (
    END_BYTES,
    found_at,
    input_digests,
    link_inputs,
    missing_inputs,
    named_inputs,
    recorded_digests,
    require_inputs,
    require_recorded_inputs,
)
from sfd_core.experiment.params import DiffusersVAEParams, Params
from sfd_core.experiment.presets import load_preset
from sfd_core.host.errors import ConfigError, DataError
from sfd_core.host.paths import write_json

PRESETS = Path(__file__).parents[3] / "presets"
OF_IMAGENET = {
    "prepare.path": "data/imagenet/train",
    "prepare.held_out_path": "data/imagenet/val",
    "texture_vae.weights": "weights/ldm-imagenet256-f16d32-50ep.ckpt",
    "reference.adm_npz": "data/VIRTUAL_imagenet256_labeled.npz",
}


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("emoji", {}),
        ("cifar10", {"prepare.path": "data/cifar10/train", "prepare.held_out_path": "data/cifar10/test"}),
        ("imagenet256-b", OF_IMAGENET),
        ("imagenet256-xl", OF_IMAGENET | {"evaluate.sampler.guide": "weights/guide-b"}),
    ],
)
def test_only_what_a_preset_names_and_lacks_is_missing(tmp_path: Path, preset: str, expected: dict[str, str]) -> None:
    params = load_preset(preset, PRESETS).check()
    assert missing_inputs(params, tmp_path) == expected
    for path in expected.values():
        (tmp_path / path).mkdir(parents=True)
    assert missing_inputs(params, tmp_path) == {}


def test_a_pattern_that_matches_a_file_is_there(tmp_path: Path) -> None:
    params = load_preset("cifar10", PRESETS).check()
    prepare = params.prepare.model_copy(update={"path": "train-*.tar", "held_out_path": None})
    pattern = params.model_copy(update={"prepare": prepare})
    with pytest.raises(DataError, match=r"missing inputs: train-\*\.tar \(prepare\.path\)"):
        require_inputs(pattern, tmp_path)
    (tmp_path / "train-0.tar").touch()
    require_inputs(pattern, tmp_path)


@pytest.mark.parametrize("path", ["a" * 300, "a/**b/*.tar"])
def test_words_that_can_be_no_path_are_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(ConfigError, match="can be neither a path nor a pattern") as told:
        found_at(path, tmp_path)
    assert repr(path) in str(told.value)


def test_a_vae_of_the_hub_is_no_file_but_a_folder_that_was_deleted_is_missed(tmp_path: Path) -> None:
    params = load_preset("dit", PRESETS).check()
    vae = DiffusersVAEParams(kind="diffusers", name="sd", weights="weights/vae", subfolder=None, channels=4, downsampling=8)
    params = params.model_copy(update={"texture_vae": vae})
    assert "texture_vae.weights" not in missing_inputs(params, tmp_path)
    (tmp_path / "weights").mkdir()
    assert missing_inputs(params, tmp_path)["texture_vae.weights"] == "weights/vae"


def test_an_experiment_reads_the_images_that_the_project_reads_now(tmp_path: Path) -> None:
    params = load_preset("cifar10", PRESETS).check()
    project, folder = tmp_path / "project", tmp_path / "project" / ".sfd" / "experiments" / "again"
    (project / "data").mkdir(parents=True)
    for disk in ("one", "two"):
        for part in ("train", "test"):
            (tmp_path / disk / part).mkdir(parents=True)
        link = project / "data" / "cifar10"
        link.unlink(missing_ok=True)
        link.symlink_to(tmp_path / disk)
        link_inputs(params, folder, project)
        assert (folder / "data" / "cifar10" / "train").resolve() == tmp_path / disk / "train"


def test_validate_says_what_is_not_there_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(load_preset("imagenet256-b", PRESETS).text)
    app(["validate", str(tmp_path / "params.yaml")])
    assert "not there yet: data/imagenet/train (prepare.path), " in capsys.readouterr().out


def of_folder(path: Path, **changes: object) -> Params:
    """Return preset cifar10 with images in `path` and weights as `changes`."""
    params = load_preset("cifar10", PRESETS).check()
    prepare = params.prepare.model_copy(update={"path": str(path), "held_out_path": None})
    return params.model_copy(update={"prepare": prepare, **changes})


def make_images(folder: Path) -> Path:
    for name, content in {"cat/1.png": b"one", "cat/deep/2.png": b"two", "dog/1.png": b"three", "dog/.hidden": b"x"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda root: (root / "dog/2.png").write_bytes(b"new"), False),
        (lambda root: (root / "dog/1.png").unlink(), False),
        (lambda root: (root / "dog/1.png").write_bytes(b"longer than before"), False),
        (lambda root: (root / "dog/1.png").write_bytes(b"other"), False),
        (lambda root: (root / "cat/1.png").rename(root / "cat/3.png"), False),
        (lambda root: (root / "dog/.other").write_bytes(b"y"), True),
        (lambda root: (root / "dog/1.png").touch(), True),
        (shutil.rmtree, True),
    ],
    ids=["added", "removed", "longer", "other", "renamed", "hidden", "touched", "gone"],
)
def test_images_count_by_names_and_content_and_after_them_by_what_was_recorded(
    tmp_path: Path, change: Callable[[Path], object], same: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    params = of_folder(make_images(tmp_path / "images"))
    before = input_digests(named_inputs(params))
    assert list(before["prepare"]) == ["prepare.path"]
    write_json(Path("outputs/inputs/prepare.json"), before["prepare"])
    require_recorded_inputs("prepare", params)
    change(tmp_path / "images")
    assert (input_digests(named_inputs(params)) == before) == same
    if same:
        require_recorded_inputs("prepare", params)
    else:
        with pytest.raises(ConfigError, match=r"images \(prepare.path\) changed after stage inputs looked.*--force inputs"):
            require_recorded_inputs("prepare", params)


def test_images_that_moved_are_the_same_and_never_read_ones_have_no_hash(tmp_path: Path) -> None:
    before = input_digests(named_inputs(of_folder(make_images(tmp_path / "images"))))
    (tmp_path / "images").rename(tmp_path / "moved")
    assert input_digests(named_inputs(of_folder(tmp_path / "moved"))) == before
    assert input_digests(named_inputs(of_folder(tmp_path / "images")), project=tmp_path)["prepare"] == {}


def test_many_images_count_by_names_and_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfd_core.experiment.inputs.SMALL_BYTES", 10)
    named = named_inputs(of_folder(make_images(tmp_path / "images")))
    before = input_digests(named)
    (tmp_path / "images/dog/1.png").write_bytes(b"other")
    assert input_digests(named) == before
    (tmp_path / "images/dog/1.png").write_bytes(b"longer than before")
    assert input_digests(named) != before


def test_weights_count_by_their_content(tmp_path: Path) -> None:
    params = of_folder(make_images(tmp_path / "images"))
    weights = tmp_path / "encoder.safetensors"
    params = params.model_copy(update={"features": params.features.model_copy(update={"weights": str(weights)})})
    digests = []
    for content in (b"one", b"two", b"one"):
        weights.write_bytes(content)
        digests.append(input_digests(named_inputs(params))["features"]["features.weights"])
    assert digests[0] != digests[1]
    assert digests[0] == digests[2]


@pytest.mark.parametrize("small", [0, 2**30])
def test_an_archive_that_is_written_again_with_the_same_size_counts_as_another(
    tmp_path: Path, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sfd_core.experiment.inputs.SMALL_BYTES", small)
    archive = tmp_path / "train-0.tar"
    digests = []
    for end in (b"0", b"1", b"0"):
        archive.write_bytes(b"head" + bytes(3 * END_BYTES) + end)
        digests.append(input_digests({"prepare.path": "train-*.tar"}, ["prepare"], tmp_path)["prepare"]["prepare.path"])
    assert digests[0] != digests[1]
    assert digests[0] == digests[2]


@pytest.mark.parametrize("kind", ["link", "pipe", "loop"])
def test_what_is_no_file_is_named(tmp_path: Path, kind: str) -> None:
    odd = tmp_path / "1.tar"
    if kind == "pipe":
        os.mkfifo(odd)
    else:
        odd.symlink_to("nowhere.tar" if kind == "link" else odd.name)
    with pytest.raises(DataError, match=r"1\.tar is no file that can be read"):
        input_digests({"features.weights": "*.tar"}, ["features"], tmp_path)


@pytest.mark.parametrize("damaged", [b"", b"[1]", b'"x"', b"\xff", b"{"])
def test_a_damaged_record_counts_as_none(tmp_path: Path, damaged: bytes) -> None:
    path = tmp_path / "outputs" / "inputs" / "prepare.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(damaged)
    assert recorded_digests("prepare", tmp_path) == {}


def test_a_guide_counts_for_the_studies_too(tmp_path: Path) -> None:
    (tmp_path / "guide").mkdir()
    (tmp_path / "guide" / "model.json").write_text("{}")
    digests = input_digests({"evaluate.sampler.guide": "guide"}, project=tmp_path)
    assert digests["studies"] == digests["evaluate"] != {}


def test_a_link_to_an_image_file_that_is_gone_leaves_the_experiment(tmp_path: Path) -> None:
    project, folder = tmp_path / "project", tmp_path / "experiment"
    for place in (project, folder):
        place.mkdir()
    params = of_folder(Path("*.tar"))
    for number in range(2):
        (project / f"{number}.tar").write_bytes(b"images")
    link_inputs(params, folder, project)
    (project / "1.tar").unlink()
    link_inputs(params, folder, project)
    assert [path.name for path in folder.iterdir()] == ["0.tar"]


def test_a_path_out_of_the_project_leads_to_the_same_files_from_an_experiment(tmp_path: Path) -> None:
    project = tmp_path / "work" / "home" / "project"
    folder = project / ".sfd" / "experiments" / "one"
    folder.mkdir(parents=True)
    images = tmp_path / "data" / "a.png"
    images.parent.mkdir()
    images.touch()
    params = of_folder(Path("../../../data"))
    link_inputs(params, folder, project)
    assert (folder / "../../../data" / "a.png").samefile(images)
    (project / "data").unlink()
    (project / "data").mkdir()
    with pytest.raises(ConfigError, match=rf"from .*one, ../../../data leads to other files, {project}/data; write the whole"):
        link_inputs(params, folder, project)
