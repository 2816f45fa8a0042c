from pathlib import Path

import pytest
import yaml

from sfd_core.experiment.drawable import require_drawable
from sfd_core.experiment.presets import Preset, load_preset, preset_names, use_preset
from sfd_core.host.errors import ConfigError

PRESETS = Path(__file__).parents[3] / "presets"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    def write(name: str, text: str) -> None:
        (tmp_path / f"{name}.yaml").write_text(text)

    write("root", "# the root\n#\n# in full\nvae: {kind: trained, width: 8}\ntrain: {steps: 5, betas: [0.9, 0.95]}\n")
    write("child", "# the child\nbase: root\ntrain: {steps: 7, betas: [0.5]}\n")
    write("grandchild", "base: child\nvae: {kind: ldm, weights: a.ckpt}\n")
    write("around", "base: again\n")
    write("again", "base: around\n")
    write("orphan", "base: nobody\n")
    write("list", "- 1\n")
    return tmp_path


def test_groups_merge_and_values_and_lists_replace(folder: Path) -> None:
    assert load_preset("child", folder).values == {
        "vae": {"kind": "trained", "width": 8},
        "train": {"steps": 7, "betas": [0.5]},
    }


def test_a_group_of_another_kind_replaces_the_whole_group(folder: Path) -> None:
    assert load_preset("grandchild", folder).values["vae"] == {"kind": "ldm", "weights": "a.ckpt"}


def test_a_root_s_file_is_kept_letter_by_letter_and_a_diff_s_is_written_out_under_its_header(folder: Path) -> None:
    root, child = load_preset("root", folder), load_preset("child", folder)
    assert root.header == "the root\n\nin full"
    assert root.text == (folder / "root.yaml").read_text()
    assert child.text.startswith("# the child\n")
    assert yaml.safe_load(child.text) == child.values


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "unknown preset 'nothing'; .* holds again, around, child"),
        ("orphan", "unknown preset 'nobody'"),
        ("around", "based on itself .around -> again -> around."),
        ("list", "holds no groups"),
    ],
)
def test_bad_preset_is_named(folder: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_preset(name, folder)


def test_a_folder_without_presets_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no preset"):
        preset_names(tmp_path)


def test_an_invalid_preset_changes_nothing(folder: Path) -> None:
    with pytest.raises(ConfigError, match="preset child"):
        use_preset(load_preset("child", folder), folder / "params.yaml")
    assert not (folder / "params.yaml").exists()


@pytest.mark.parametrize(
    "preset", [load_preset(name, PRESETS) for name in preset_names(PRESETS)], ids=lambda preset: preset.name
)
def test_committed_preset_can_be_drawn_and_says_what_it_is_for(preset: Preset) -> None:
    require_drawable(preset.check())
    assert f"sfd preset use {preset.name}" in preset.header
    assert {"Reproduces", "Compute"} <= {line.split(" ")[0] for line in preset.header.splitlines()}


@pytest.mark.parametrize("name", [name for name in preset_names(PRESETS) if not name.startswith("imagenet256-guide")])
def test_variants_of_a_preset_differ_in_nothing_but_what_they_are_named_after(name: str) -> None:
    variants = load_preset(name, PRESETS).check().variants.values()
    assert len({(variant.size, variant.patch) for variant in variants}) == 1
    networks = [variant for variant in variants if variant.family == "flow"]
    assert len({(network.learning_rate, network.prediction, network.inner is None) for network in networks}) == 1
    assert len({network.repa.mode for network in networks if network.repa.weight > 0}) == 1
