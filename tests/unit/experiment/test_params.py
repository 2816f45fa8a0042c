"""Bad parameters are named with the reason and the remedy, before any compute."""

from pathlib import Path
from typing import Any

import pytest
from emoji import emoji, emoji_values, emoji_with

from sfd_core.experiment import params as module
from sfd_core.experiment.params import fingerprint, load_params, parse_params, parse_sampler
from sfd_core.host.errors import ConfigError
from sfd_core.training.optim import learning_rate_at

OFFSETS = {"kind": "offsets", "variant": "dit", "offsets": [0.0, 0.3]}


def test_the_committed_experiment_is_valid() -> None:
    params = emoji()
    assert params.active == ["dit", "lightningdit", "sync", "sfd"]
    assert params.latent_grid == params.features.grid == 8
    assert params.semantic_channels(params.variants["lightningdit"]) == 0


PROBE = {"kind": "learned", "size": "tiny", "patch": 2, "semantic": "vae", "learning_rate": 0.01, "steps": 10, "seed": 0}
PROBE |= {"semantic_weight": 1.0, "knots": 4, "kinetic": 0.1}


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("train.lerning_rate", 1.0, r"train\.lerning_rate: unknown key"),
        ("prepare.resolution", "64", r"prepare\.resolution: Input should be a valid integer \(given: '64'\)"),
        ("variants.sfd.delta_t", 1.3, r"variants\.sfd\.delta_t: .*less than or equal to 1 \(given: 1.3\)"),
        ("variants.sfd.delta_t", -1.1, r"variants\.sfd\.delta_t: .*greater than or equal to -1"),
        ("variants.sfd.semantic", "none", "delta_t is 0.3, path None and times global, but there is no semantic latent"),
        ("variants.sfd.times", {"kind": "any"}, r"times\.kind: must be one of global, own, independent \(given: 'any'\)"),
        ("variants.sfd.times", {"kind": "independent"}, r"variants\.sfd\.times\.absent: missing"),
        ("variants.sfd.times", {"kind": "independent", "absent": 1.0}, r"times\.absent: .*less than 1"),
        ("variants.sfd.times", {"kind": "independent", "absent": 0.1}, "mask_clamped has no meaning with times"),
        ("variants.dit.times", {"kind": "independent", "absent": 0.1}, "times independent, but there is no semantic latent"),
        ("train.class_dropout", 1.0, r"train\.class_dropout: .*less than 1"),
        ("train.ema_decay", 1.0, r"train\.ema_decay: .*less than 1"),
        ("evaluate.sampler.delta_t", -2.0, r"sampler\.delta_t: .*greater than or equal to -1"),
        ("evaluate.sampler.guide_step", 10, "guide_step is 10, but there is no guide"),
        ("prepare.styles", ["thumbs"], "avatars need both, other sources take neither"),
        ("prepare.per_style", 10, "avatars need both, other sources take neither"),
        ("encode.texture_energy_power", 1.5, r"encode\.texture_energy_power: .*less than or equal to 1"),
        ("semantic_vae.channels", 0, r"semantic_vae\.channels: .*greater than or equal to 1"),
        ("features.grid", 16, "both latents must lie on one grid"),
        ("prepare.resolution", 60, "not a multiple of texture_vae.downsampling 8"),
        ("variants.sfd.patch", 3, "patch 3 does not divide the latent grid 8"),
        (
            "evaluate.sampler.evaluations",
            2,
            r"evaluations is 2, but variants\.sfd\.delta_t 0\.3 needs at least 3 \(one per phase\)\. Set it to 3 or more",
        ),
        ("texture_vae.width", 12, r"texture_vae\.width: Input should be a multiple of 8"),
        ("texture_vae.channels", 193, "channels 193 exceed the 192 values of a patch of 8 pixels"),
        ("texture_vae.optimisation.optimizer", "muon", r"texture_vae: optimisation\.optimizer is muon, which is for denoisers"),
        (
            "semantic_vae.optimisation.optimizer",
            "muon",
            r"semantic_vae: optimisation\.optimizer is muon, which is for denoisers",
        ),
        ("semantic_vae.heads", 5, "not a multiple of its 5 heads"),
        ("active", ["sfd", "sdf"], "unknown variant 'sdf'; variants defines dit, lightningdit"),
        ("active", ["sfd", "sfd"], "names a variant twice"),
        ("active", [], r"active: .*at least 1 item"),
        ("report.baseline", "nothing", "unknown variant 'nothing'"),
        ("variants.sfd.size", "XS", r"variants\.sfd\.size: Input should be 'tiny', 'S'"),
        ("reference.extractors", ["vgg"], r"reference\.extractors\.0: Input should be 'inception'"),
        ("reference.adm_npz", "VIRTUAL_imagenet256_labeled.npz", "add inception to them or set adm_npz to null"),
        ("evaluate.sampler.solver", "rk4", r"evaluate\.sampler\.solver: Input should be 'euler', 'heun', 'ab2' or 'dopri5'"),
        ("evaluate.sampler.guide", "outputs/train/weak", "autoguidance needs a guide, semantic may have one"),
        ("evaluate.sampler.texture.interval", [0.8, 0.2], "0 <= first < second <= 1"),
        ("variants.repa.repa.block", 5, "beyond the 4 blocks of size tiny"),
        ("encode.posterior", "mean", r"encode\.posterior: Input should be 'sample' or 'moments'"),
        ("variants.repa.repa.targets", "pca", r"repa\.targets: Input should be 'encoder' or 'semantic'"),
        (
            "variants.redi.repa",
            {"weight": 0.5, "mode": "cosine", "targets": "semantic", "block": 2, "width": 256},
            r"variants\.redi: repa\.targets is semantic, which needs the Semantic VAE, but semantic is pca",
        ),
        ("variants.dit.semantic", "vae", "texture-only DiT baseline"),
        ("train.optimisation.warmup_steps", 10**6, "exceed steps"),
        ("train.optimisation.betas", [0.9, 1.0], r"optimisation\.betas\.1: Input should be less than 1"),
        ("prepare.path", "images", "files need a path, twemoji and avatars have none"),
        ("prepare.labels", "stored", r"labels 'stored' do not exist for source 'twemoji'; use category or subcategory"),
        ("prepare.held_out", None, r"held_out None with held_out_path None: give the fraction of path .* or the path"),
        ("prepare.held_out_path", "val", r"held_out_path is 'val', but twemoji has no held-out set; set it to null"),
        ("texture_vae.learning_rate", float("nan"), r"texture_vae\.learning_rate"),
        ("texture_vae.kind", "vqgan", r"texture_vae\.kind: must be one of trained, ldm, diffusers \(given: 'vqgan'\)"),
        (
            "studies",
            {"curve": {"kind": "offset"}},
            r"studies\.curve\.kind: must be one of offsets, corners, error_field, guidance",
        ),
        ("variants.sfd.path", [[0, 0], [1, 1]], r"delta_t is 0\.3, but a path is given, too"),
        ("variants.sync.path", [[0, 0], [0.5, 0.5], [0.4, 1], [1, 1]], r"steps back to \[0\.4, 1"),
        ("variants.sync.path", [[0, 0.5], [1, 1]], r"must begin with \[0, 0\]"),
        ("variants.sync.path", [[0, 0], [0.5, 1]], r"and end with \[1, 1\]"),
        ("evaluate.sampler.shift", float("inf"), r"evaluate\.sampler\.shift: Input should be a finite number"),
        ("variants.sync.path", [[0, 0], [2, 1]], "less than or equal to 1"),
        ("variants.sync.path", [[0, 0], *([k / 99, k / 120] for k in range(1, 99)), [1, 1]], "needs at least 99"),
        ("variants.dit.path", [[0, 0], [1, 1]], "but there is no semantic latent"),
        ("variants.sfd.inner", {"block": 4, "weight": 1.0}, r"inner\.block 4 is not inside the 4 blocks of size tiny"),
        ("variants.dit.inner", {"block": 2, "weight": 1.0}, "texture-only DiT baseline"),
        ("variants.dit.prediction", "data", "texture-only DiT baseline"),
        ("variants.dit.cosine_weight", 1.0, "texture-only DiT baseline: .*cosine_weight to 0"),
        ("variants.sfd.prediction", "noise", r"variants\.sfd\.prediction: Input should be 'velocity' or 'data'"),
        ("evaluate.sampler.path", [[0, 0], [1, 1]], "but active variant dit has no semantics that could lead"),
        ("evaluate.sampler.delta_t", 0.1, r"delta_t is 0\.1, but active variant dit has no semantics"),
        ("variants.sync.found_path", True, r"variants\.sync\.found_path is true, but schedule is null"),
        ("variants.sfd.found_path", True, "but a path is given, too"),
        ("schedule", {"kind": "cheapest"}, r"schedule\.kind: must be one of least_cost, learned \(given: 'cheapest'\)"),
        ("schedule", PROBE | {"patch": 3}, r"schedule\.patch 3 does not divide the latent grid 8"),
        ("schedule", PROBE | {"knots": 1}, r"schedule\.knots: .*greater than or equal to 2"),
        ("schedule", PROBE | {"points": 9}, r"schedule\.points: unknown key"),
        ("train.power_emas", [0.3], r"train\.power_emas\.0: .*less than 0\.288"),
        ("train.validation_images", -1, r"train\.validation_images: .*greater than or equal to 0"),
        ("studies", {"a/b": OFFSETS}, r"studies\.a/b: cannot be a name; use letters"),
        ("studies", {"curve": OFFSETS | {"offsets": [2]}}, r"studies\.curve\.offsets\.0: .*less than or equal to 1"),
        ("studies", {"curve": OFFSETS | {"variant": "sdf"}}, "unknown variant 'sdf'"),
        ("studies", {"curve": OFFSETS | {"variant": "sfd"}}, r"studies\.curve\.variant sfd has one path"),
        ("semantic_vae.weights", "semvae.pt", r"semantic_vae: standardise is true, but published weights take raw tokens"),
    ],
)
def test_a_bad_value_is_named(key: str, value: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_params(emoji_with(key, value))


def test_an_oracle_of_any_order_fits_the_evaluations() -> None:
    values = emoji_with("active", ["any_order"]) | {"studies": {}}
    values["variants"]["any_order"]["delta_t"] = 0.0
    values["evaluate"]["sampler"]["evaluations"] = 1
    with pytest.raises(ConfigError, match=r"evaluations is 1, but evaluate\.oracle of the offset 1\.0 needs at least 2"):
        parse_params(values)
    values["evaluate"]["oracle"] = False
    assert parse_params(values).active == ["any_order"]


def test_a_learned_path_fits_the_evaluations() -> None:
    values = emoji_with("schedule", PROBE | {"knots": 20})
    values["variants"]["sync"]["found_path"] = True
    values["evaluate"]["sampler"]["evaluations"] = 20
    assert parse_params(values).schedule is not None
    values["schedule"]["semantic"] = "pca"
    with pytest.raises(ConfigError, match=r"schedule\.semantic is pca and the variant's semantic vae"):
        parse_params(values)
    values["schedule"] |= {"semantic": "vae", "knots": 21}
    with pytest.raises(ConfigError, match=r"evaluations is 20, but schedule\.knots 21 needs at least 21 \(one per phase\)"):
        parse_params(values)


LDM = {"kind": "ldm", "name": "sd-vae-f16d32", "weights": "vae.ckpt", "channels": 32, "downsampling": 8}
DIFFUSERS = LDM | {"kind": "diffusers", "weights": "stabilityai/sd-vae-ft-mse", "subfolder": None}


@pytest.mark.parametrize("vae", [LDM, DIFFUSERS])
def test_a_texture_vae_of_any_kind_fixes_the_latent_grid(vae: dict[str, Any]) -> None:
    params = parse_params(emoji_with("texture_vae", vae))
    assert (params.latent_grid, params.texture_vae.channels) == (8, 32)
    with pytest.raises(ConfigError, match="both latents must lie on one grid"):
        parse_params(emoji_with("texture_vae", vae | {"downsampling": 16}))


@pytest.mark.parametrize(
    ("vae", "said"),
    [
        (LDM | {"channels": 0}, r"texture_vae\.channels: .*greater than or equal to 1"),
        (LDM | {"width": 8}, r"texture_vae\.width: unknown key"),
        ({key: value for key, value in LDM.items() if key != "weights"}, r"texture_vae\.weights: missing"),
        ({key: value for key, value in LDM.items() if key != "kind"}, r"texture_vae\.kind: must be one of .*given: None"),
    ],
)
def test_a_bad_value_of_one_kind_is_named_without_the_kind(vae: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_params(emoji_with("texture_vae", vae))


def test_the_paper_s_semantic_vae_is_expressible() -> None:
    """1M steps: 500 of warm-up, constant to 800,000, cosine to a tenth (arXiv 2512.04926, appendix)."""
    optimisation = {
        "steps": 1_000_000, "batch_size": 64, "warmup_steps": 500, "decay_steps": 200_000, "final_rate": 0.1,
        "betas": [0.9, 0.999], "weight_decay": 0.0, "clip_norm": 0.0, "precision": "bfloat16", "checkpoint_every": 10_000,
        "seed": 0,
    }  # fmt: skip
    recipe = {
        "weights": None, "standardise": False, "channels": 16, "width": 768, "depth": 4, "heads": 6, "kl_weight": 1e-7,
        "pca_channels": 8, "learning_rate": 5e-5, "optimisation": optimisation,
    }  # fmt: skip
    params = parse_params(emoji_with("semantic_vae", recipe)).semantic_vae
    rates = [learning_rate_at(step, params.learning_rate, params.optimisation) for step in (499, 799_999, 999_999)]
    assert rates == pytest.approx([5e-5, 5e-5, 5e-6], rel=1e-3)


def test_a_missing_value_is_named() -> None:
    values = emoji_values()
    del values["encode"]["dtype"]
    with pytest.raises(ConfigError, match=r"encode\.dtype: missing"):
        parse_params(values)


def test_all_bad_values_are_told_at_once() -> None:
    values = emoji_with("variants.sfd.delta_t", 2.0)
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
    params = emoji()
    again = parse_params(emoji_values())
    assert fingerprint(params) == fingerprint(again)
    assert fingerprint(params) != fingerprint(parse_params(emoji_with("encode.seed", 1)))


def test_a_setting_that_may_be_left_out_changes_no_fingerprint_at_its_default() -> None:
    plain = fingerprint(emoji().train)
    assert fingerprint(parse_params(emoji_with("train.power_emas", [])).train) == plain
    assert fingerprint(parse_params(emoji_with("train.power_emas", [0.1])).train) != plain


AVATARS = {"source": "avatars", "styles": ["thumbs", "sprouts"], "per_style": 4, "labels": "style"}


def test_what_a_setting_that_is_left_out_means_never_changes() -> None:
    """DVC compares what is written, so a changed line here runs nothing again; write the value into parameter files instead."""
    groups = [group for group in vars(module).values() if isinstance(group, type) and issubclass(group, module.Group)]
    defaults = {
        f"{group.__name__}.{name}": group.model_fields[name].default
        for group in groups
        for name in group.__annotations__.keys() & group.model_fields.keys()
        if not group.model_fields[name].is_required()
    }
    assert defaults == {
        "Optimisation.optimizer": "adamw",
        "PrepareParams.styles": None,
        "PrepareParams.per_style": None,
        "EncodeParams.texture_energy_power": 0.0,
        "TrainParams.power_emas": [],
        "TrainParams.conditional": True,
        "TrainParams.validation_images": 0,
        "VariantParams.path": None,
        "VariantParams.found_path": False,
        "VariantParams.times": module.GlobalTimes(kind="global"),
        "VariantParams.prediction": "velocity",
        "VariantParams.inner": None,
        "SamplerParams.delta_t": None,
        "SamplerParams.path": None,
        "SamplerParams.guide_step": None,
        "SamplerParams.precision": "float32",
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"path": "images"}, "twemoji and avatars have none"),
        ({"styles": None}, "avatars need both"),
        ({"per_style": None}, "avatars need both"),
        ({"styles": ["thumbs", "thumbs"]}, "names a style twice"),
        ({"styles": []}, "at least 1 item"),
        ({"labels": "folder"}, "labels 'folder' do not exist for source 'avatars'; use style"),
        ({"copies": 2}, "only twemoji has several renderings"),
    ],
)
def test_avatars_need_styles_and_a_number(changes: dict[str, Any], said: str) -> None:
    values = emoji_with("prepare.source", "avatars")
    values["prepare"] |= AVATARS
    parse_params(values)
    values["prepare"] |= changes
    with pytest.raises(ConfigError, match=said):
        parse_params(values)


def test_semantic_guidance_acts_on_texture_alone() -> None:
    values = emoji_with("evaluate.sampler.guidance", "semantic")
    parse_params(values)
    values["evaluate"]["sampler"]["semantic"] = {"scale": 1.5, "interval": [0.0, 1.0]}
    with pytest.raises(ConfigError, match=r"semantic\.scale is 1\.5, but semantic guidance acts on texture alone"):
        parse_params(values)


def test_values_that_do_not_fit_one_another_are_no_matter_of_a_file() -> None:
    sampler = emoji_values()["evaluate"]["sampler"] | {"texture": {"scale": 2.0, "interval": [0.0, 1.0]}}
    with pytest.raises(ConfigError, match=r"^the options cannot be drawn: texture\.scale is 2\.0, but guidance is none"):
        parse_sampler(sampler, "the options")


@pytest.mark.parametrize("name", ["a$(touch x)", "a`b`", "a;b", "a b", "a.b", "../a", "-a", "", "COM1", "x" * 65, "ü"])
def test_names_that_a_shell_a_folder_or_dvc_would_read_otherwise_are_refused(name: str) -> None:
    values = emoji_values()
    values["variants"][name] = values["variants"]["sfd"]
    with pytest.raises(ConfigError, match="variants"):
        parse_params(values)


@pytest.mark.parametrize("key", ["kid_subset_size", "snapshot_samples", "final_samples"])
def test_counts_too_small_for_their_numbers_are_refused_with_the_smallest(key: str) -> None:
    least = 2 if key == "kid_subset_size" else 5
    assert parse_params(emoji_with(f"evaluate.{key}", least))
    with pytest.raises(ConfigError, match=rf"evaluate.{key}: Input should be greater than or equal to {least}"):
        parse_params(emoji_with(f"evaluate.{key}", least - 1))
