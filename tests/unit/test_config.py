"""Bad parameters are named with the reason and the remedy, before any compute."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from sfd_core.config import fingerprint, load_params, parse_params
from sfd_core.errors import ConfigError

COMMITTED = Path(__file__).parents[2] / "params.yaml"


def changed(key: str, value: Any) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(COMMITTED.read_text())
    place: Any = values
    *parents, last = key.split(".")
    for parent in parents:
        place = place[parent]
    place[last] = value
    return values


def test_the_committed_experiment_is_valid() -> None:
    params = load_params(COMMITTED)
    assert params.active == ["dit", "lightningdit", "sync", "sfd"]
    assert params.latent_grid == params.features.grid == 8
    assert params.semantic_channels(params.variants["lightningdit"]) == 0


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("train.lerning_rate", 1.0, r"train\.lerning_rate: unknown key"),
        ("prepare.resolution", "64", r"prepare\.resolution: Input should be a valid integer \(given: '64'\)"),
        ("variants.sfd.delta_t", 1.3, r"variants\.sfd\.delta_t: .*less than or equal to 1 \(given: 1.3\)"),
        ("variants.sfd.delta_t", -0.1, r"variants\.sfd\.delta_t: .*greater than or equal to 0"),
        ("variants.sfd.semantic", "none", "no semantic latent can lead"),
        ("semantic_vae.channels", 0, r"semantic_vae\.channels: .*greater than or equal to 1"),
        ("features.grid", 16, "both latents must lie on one grid"),
        ("prepare.resolution", 60, "not a multiple of texture_vae.downsampling 8"),
        ("variants.sfd.patch", 3, "patch 3 does not divide the latent grid 8"),
        ("texture_vae.width", 12, "width 12 is not a multiple of its 8 normalisation groups"),
        ("semantic_vae.heads", 5, "not a multiple of its 5 heads"),
        ("active", ["sfd", "sdf"], "unknown variant 'sdf'; variants defines dit, lightningdit"),
        ("active", ["sfd", "sfd"], "names a variant twice"),
        ("active", [], r"active: .*at least 1 item"),
        ("report.baseline", "nothing", "unknown variant 'nothing'"),
        ("variants.sfd.size", "XS", r"variants\.sfd\.size: Input should be 'tiny', 'S'"),
        ("reference.extractors", ["vgg"], r"reference\.extractors\.0: Input should be 'inception'"),
        ("reference.adm_npz", "VIRTUAL_imagenet256_labeled.npz", "add inception to them or set adm_npz to null"),
        ("evaluate.sampler.solver", "rk4", r"evaluate\.sampler\.solver: Input should be 'euler', 'heun' or 'dopri5'"),
        ("evaluate.sampler.guide", "outputs/train/weak", "autoguidance needs a guide, nothing else does"),
        ("evaluate.sampler.texture.interval", [0.8, 0.2], "0 <= first < second <= 1"),
        ("variants.repa.repa.block", 5, "beyond the 4 blocks of size tiny"),
        ("variants.dit.semantic", "vae", "texture-only DiT baseline"),
        ("train.optimisation.warmup_steps", 10**6, "exceed steps"),
        ("train.optimisation.betas", [0.9, 1.0], r"must lie in \[0, 1\)"),
        ("prepare.path", "images", "a folder needs a path, twemoji none"),
        ("texture_vae.learning_rate", float("nan"), r"texture_vae\.learning_rate"),
    ],
)
def test_a_bad_value_is_named(key: str, value: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_params(changed(key, value))


def test_a_missing_value_is_named() -> None:
    values = yaml.safe_load(COMMITTED.read_text())
    del values["encode"]["dtype"]
    with pytest.raises(ConfigError, match=r"encode\.dtype: missing"):
        parse_params(values)


def test_all_bad_values_are_told_at_once() -> None:
    values = changed("variants.sfd.delta_t", 2.0)
    values["encode"]["batch_size"] = 0
    with pytest.raises(ConfigError) as caught:
        parse_params(values)
    assert "variants.sfd.delta_t" in str(caught.value)
    assert "encode.batch_size" in str(caught.value)


@pytest.mark.parametrize("text", ["a: [", "\x00", "- 1"])
def test_a_file_that_is_no_mapping_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"params\.yaml"):
        load_params(tmp_path / "params.yaml")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_params(tmp_path / "nothing.yaml")


def test_equal_values_have_equal_fingerprints() -> None:
    params = load_params(COMMITTED)
    again = parse_params(copy.deepcopy(yaml.safe_load(COMMITTED.read_text())))
    assert fingerprint(params) == fingerprint(again)
    assert fingerprint(params) != fingerprint(parse_params(changed("encode.seed", 1)))
