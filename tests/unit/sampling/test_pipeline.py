"""Image i depends on the seed and i; guidance and identities hold."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from denoisers import CLASSES, artifact, texture_vae, variant
from PIL import Image
from torch import Tensor

from sfd_core.diffusion.gaussian_sampler import sample_gaussian
from sfd_core.diffusion.schedule import Schedule, SharedTimes
from sfd_core.diffusion.solver import SolverSettings, integrate
from sfd_core.experiment.params import GuidanceParams
from sfd_core.host.errors import ConfigError, DataError, IdentityError, NumericsError
from sfd_core.host.seeding import generator, sample_noise
from sfd_core.latents.composite import Split
from sfd_core.sampling import trajectory
from sfd_core.sampling.artifact import DenoiserManifest
from sfd_core.sampling.pipeline import DEFAULT_SAMPLER, Pipeline, find_labels

KINDS = {
    "sfd": {},
    "sync": {"delta_t": 0.0},
    "texture": {"semantic": "none", "delta_t": 0.0},
    "dit": {"model": "dit", "semantic": "none", "delta_t": 0.0, "cosine_weight": 0.0},
}
AUTO = {"guidance": "autoguidance", "guide": "weak", "texture": {"scale": 2.0, "interval": [0.0, 1.0]}}
SAMPLER = DEFAULT_SAMPLER.model_copy(update={"evaluations": 6})


def pipeline(folder: Path, kind: str = "sfd") -> Pipeline:
    vae = texture_vae(folder / "vae")
    return Pipeline.from_artifact(artifact(folder / "train", vae, variant(**KINDS[kind])), vae)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", ["euler", "heun", "ab2", "dopri5"])
def test_an_image_does_not_depend_on_its_batch(kind: str, solver: str, tmp_path: Path) -> None:
    pipe = pipeline(tmp_path, kind)
    labels = [index % 3 for index in range(9)]
    settings = {"solver": solver, "gaussian_solver": "ddpm", "evaluations": 6}
    together = pipe(labels, seed=5, sampler=SAMPLER, **settings, batch_size=32).images
    alone = pipe(labels, seed=5, sampler=SAMPLER, **settings, batch_size=1).images
    # Matrix products of other sizes may round differently in the last bit: at most one grey level.
    assert (together.int() - alone.int()).abs().max() <= 1
    assert not torch.equal(together[0], together[3])


def test_another_seed_gives_other_images(tmp_path: Path) -> None:
    pipe = pipeline(tmp_path)
    images = pipe([0, 1], seed=1, sampler=SAMPLER).images
    assert not torch.equal(pipe([0, 1], seed=0, sampler=SAMPLER).images, images)
    assert torch.equal(pipe([0, 1], sampler=SAMPLER.model_copy(update={"seed": 1})).images, images)


def test_evaluations_are_counted(tmp_path: Path) -> None:
    pipe = pipeline(tmp_path)
    assert pipe([0], sampler=SAMPLER).evaluations == 6
    assert pipe([0], sampler=SAMPLER, solver="heun").evaluations == 6
    assert pipe([0], sampler=SAMPLER, solver="ab2").evaluations == 6
    assert pipe([0], sampler=SAMPLER, solver="dopri5").evaluations > 6


@pytest.mark.parametrize("kind", ["sfd", "dit"])
def test_guidance_of_scale_one_changes_nothing_and_of_scale_two_does(kind: str, tmp_path: Path) -> None:
    pipe = pipeline(tmp_path, kind)
    plain = pipe([0, 1], sampler=SAMPLER).images
    off, on = (GuidanceParams(scale=scale, interval=[0.0, 1.0]) for scale in (1.0, 2.0))
    assert torch.equal(pipe([0, 1], sampler=SAMPLER, guidance="cfg", texture=off, semantic=off).images, plain)
    assert not torch.equal(pipe([0, 1], sampler=SAMPLER, guidance="cfg", texture=on, semantic=off).images, plain)


@pytest.mark.parametrize("kind", ["sfd", "dit"])
def test_classifier_free_guidance_asks_for_both_sides_at_once_and_only_within_its_interval(kind: str, tmp_path: Path) -> None:
    pipe = pipeline(tmp_path, kind)
    images: list[int] = []
    pipe.denoiser.model.register_forward_hook(lambda _, given, __: images.append(len(given[0])))
    part = GuidanceParams(scale=2.0, interval=[0.0, 0.5])
    guided = pipe([0, 1], sampler=SAMPLER, guidance="cfg", texture=part, semantic=part)
    assert len(images) == guided.evaluations
    assert sorted(set(images)) == [2, 4]


def test_classifier_free_guidance_moves_from_no_class_to_the_class_and_beyond(tmp_path: Path) -> None:
    pipe = pipeline(tmp_path)
    denoiser, labels = pipe.denoiser, torch.tensor([0, 1])

    @torch.no_grad()
    def velocity(x: Tensor, times: SharedTimes) -> Tensor:
        with_class = denoiser.model(x, times.t_tex, times.t_sem, labels).prediction
        without: Tensor = denoiser.model(x, times.t_tex, times.t_sem, torch.full_like(labels, denoiser.null_class)).prediction
        return without + 2 * (with_class - without)

    noise = sample_noise(0, [0, 1], (denoiser.latent.channels, denoiser.latent.grid, denoiser.latent.grid))
    expected = integrate(
        velocity, noise, Schedule.of(denoiser.variant), denoiser.composite.n_texture, SolverSettings("euler", 6)
    ).x
    part = GuidanceParams(scale=2.0, interval=[0.0, 1.0])
    guided = SAMPLER.model_copy(update={"guidance": "cfg", "texture": part, "semantic": part})
    torch.testing.assert_close(pipe.solve([0, 1], labels, guided).x, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_blocks_draw_the_same_images(tmp_path: Path) -> None:
    vae = texture_vae(tmp_path / "vae")
    folder = artifact(tmp_path / "train", vae, variant())
    compiled = Pipeline.from_artifact(folder, vae, compiled=True)([0, 1, 2, 0, 1], sampler=SAMPLER, batch_size=3).images
    plain = Pipeline.from_artifact(folder, vae)([0, 1, 2, 0, 1], sampler=SAMPLER, batch_size=3).images
    assert (compiled.int() - plain.int()).abs().max() <= 1


def test_autoguidance_by_the_model_itself_changes_nothing(tmp_path: Path) -> None:
    vae = texture_vae(tmp_path / "vae")
    main = artifact(tmp_path / "main", vae, variant())
    guidance = GuidanceParams(scale=1.5, interval=[0.0, 1.0])
    settings = {"sampler": SAMPLER, "guidance": "autoguidance", "guide": str(main), "texture": guidance, "semantic": guidance}
    guided = Pipeline.from_artifact(main, vae, guide=main)([0, 1], **settings).images
    plain = Pipeline.from_artifact(main, vae)([0, 1], sampler=SAMPLER).images
    assert (guided.int() - plain.int()).abs().max() <= 1
    weak = Pipeline.from_artifact(main, vae, guide=artifact(tmp_path / "weak", vae, variant(), seed=1))
    assert not torch.equal(weak([0, 1], **settings).images, plain)


def test_a_guide_of_other_latents_is_refused(tmp_path: Path) -> None:
    vae, other = texture_vae(tmp_path / "vae"), texture_vae(tmp_path / "other", seed=1)
    main, guide = artifact(tmp_path / "main", vae, variant()), artifact(tmp_path / "guide", other, variant())
    with pytest.raises(IdentityError, match="texture_vae"):
        Pipeline.from_artifact(main, vae, guide=guide)


@pytest.mark.parametrize(
    ("labelled", "semantic", "guide_labelled", "message"),
    [
        (True, "pca", True, r"guide with 6 channels \(flow, semantic pca\) .* denoiser with 6 channels \(flow, semantic vae\)"),
        (True, "none", True, "guide with 4 channels"),
        (True, "vae", False, "and 0 classes cannot guide .* and 3 classes"),
        (False, "vae", True, "and 3 classes cannot guide .* and 0 classes"),
    ],
)
def test_a_guide_of_other_semantics_or_labels_is_refused(
    labelled: bool, semantic: str, guide_labelled: bool, message: str, tmp_path: Path
) -> None:
    vae = texture_vae(tmp_path / "vae")
    main = artifact(tmp_path / "main", vae, variant(), classes=CLASSES if labelled else [])
    guide = artifact(
        tmp_path / "guide", vae, variant(semantic=semantic, delta_t=0.0), classes=CLASSES if guide_labelled else []
    )
    with pytest.raises(IdentityError, match=message):
        Pipeline.from_artifact(main, vae, guide=guide)


def test_another_texture_vae_is_refused(tmp_path: Path) -> None:
    main = artifact(tmp_path / "main", texture_vae(tmp_path / "vae"), variant())
    with pytest.raises(IdentityError, match="texture VAE"):
        Pipeline.from_artifact(main, texture_vae(tmp_path / "other", seed=1))


@pytest.mark.parametrize("labels", [[], [7], [-1]])
def test_labels_that_do_not_exist_are_refused(labels: list[int], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="labels"):
        pipeline(tmp_path)(labels)


@pytest.mark.parametrize(("solver", "error"), [("euler", 1e-5), ("dopri5", 1e-4)])
def test_an_oracle_run_ends_in_each_image_s_own_semantics(solver: str, error: float, tmp_path: Path) -> None:
    pipe, sampler = pipeline(tmp_path), SAMPLER.model_copy(update={"solver": solver, "delta_t": 1.0})
    semantics = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    drawn = pipe.latents(0, [0, 1, 2], sampler, semantics).x
    torch.testing.assert_close(drawn[:, 4:], semantics, atol=error, rtol=0)
    assert not torch.allclose(drawn[:, :4], pipe.latents(0, [0, 1, 2], sampler).x[:, :4])
    with pytest.raises(ConfigError, match=r"path .* begins texture before semantics are finished, .* with delta_t 1"):
        pipe.latents(0, [0, 1, 2], SAMPLER, semantics)


def test_a_grid_is_a_readable_picture(tmp_path: Path) -> None:
    samples = pipeline(tmp_path)([0, 1, 2], sampler=SAMPLER)
    samples.save_grid(tmp_path / "grid.png", columns=3)
    picture = np.asarray(Image.open(tmp_path / "grid.png"))
    assert picture.shape == (20, 3 * 18 + 2, 3)
    assert (picture[2:18, 2:18] == samples.images[0].permute(1, 2, 0).numpy()).all()
    assert len(CLASSES) == 3


@pytest.mark.parametrize("guided_by", ["itself", "a weaker network"])
def test_semantic_guidance_moves_texture_away_from_what_it_is_without_semantics(guided_by: str, tmp_path: Path) -> None:
    vae = texture_vae(tmp_path / "vae")
    params = variant(times={"kind": "independent", "absent": 0.1})
    guide = None if guided_by == "itself" else artifact(tmp_path / "guide", vae, params, seed=1)
    pipe = Pipeline.from_artifact(artifact(tmp_path / "train", vae, params), vae, guide=guide)
    denoiser, labels = pipe.denoiser, torch.tensor([0, 1])
    noise = sample_noise(0, [0, 1], (denoiser.latent.channels, denoiser.latent.grid, denoiser.latent.grid))
    n = denoiser.composite.n_texture

    @torch.no_grad()
    def velocity(x: Tensor, times: SharedTimes) -> Tensor:
        present = denoiser.model(x, times.t_tex, times.t_sem, labels).prediction
        alone = torch.cat([x[:, :n], noise[:, n:]], dim=1)
        reference = (pipe.guide or denoiser).model
        absent = reference(alone, times.t_tex, torch.zeros_like(times.t_sem), labels).prediction
        return torch.cat([(absent + 2 * (present - absent))[:, :n], present[:, n:]], dim=1)

    expected = integrate(velocity, noise, Schedule.of(denoiser.variant), n, SolverSettings("euler", 6)).x
    changes = {"guidance": "semantic", "guide": guide and str(guide), "texture": GuidanceParams(scale=2.0, interval=[0.0, 1.0])}
    found = pipe.solve([0, 1], labels, SAMPLER.model_copy(update=changes)).x
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_semantic_guidance_needs_trainings_with_absent_semantics(tmp_path: Path) -> None:
    vae = texture_vae(tmp_path / "vae")
    plain = artifact(tmp_path / "plain", vae, variant())
    able = artifact(tmp_path / "able", vae, variant(times={"kind": "independent", "absent": 0.1}))
    with pytest.raises(ConfigError, match="this denoiser was trained with times of kind global and no absent semantics"):
        Pipeline.from_artifact(plain, vae)([0], sampler=SAMPLER, guidance="semantic")
    with pytest.raises(ConfigError, match="its guide was trained with times of kind global and no absent semantics"):
        Pipeline.from_artifact(able, vae, guide=plain)([0], sampler=SAMPLER, guidance="semantic", guide=str(plain))


def test_a_sampler_can_take_another_offset_than_the_training(tmp_path: Path) -> None:
    pipe = pipeline(tmp_path)
    plain = pipe([0, 1], sampler=SAMPLER).images
    assert torch.equal(pipe([0, 1], sampler=SAMPLER, delta_t=0.3).images, plain)
    assert not torch.equal(pipe([0, 1], sampler=SAMPLER, delta_t=-0.5).images, plain)
    texture_only = Pipeline.from_artifact(
        artifact(tmp_path / "plain", tmp_path / "vae", variant(semantic="none", delta_t=0.0)), tmp_path / "vae"
    )
    with pytest.raises(ConfigError, match="no semantics that could lead"):
        texture_only([0], sampler=SAMPLER, delta_t=0.3)


def test_a_denoiser_without_labels_draws_without_them(tmp_path: Path) -> None:
    vae = texture_vae(tmp_path / "vae")
    pipe = Pipeline.from_artifact(artifact(tmp_path / "train", vae, variant(), classes=[]), vae)
    images = pipe([0, 0], sampler=SAMPLER).images
    assert not torch.equal(images[0], images[1])
    with pytest.raises(ConfigError, match="labels 1: this denoiser was trained without labels; give 0"):
        pipe([1], sampler=SAMPLER)
    with pytest.raises(ConfigError, match="guidance is cfg, but this denoiser was trained without labels"):
        pipe([0], sampler=SAMPLER, guidance="cfg")


def test_a_null_class_that_was_never_trained_is_neither_drawn_nor_a_guide(tmp_path: Path) -> None:
    vae = texture_vae(tmp_path / "vae")
    folder = artifact(tmp_path / "train", vae, variant())
    manifest = DenoiserManifest.read(folder)
    replace(manifest, knows_null_class=False).write(folder)
    pipe, null = Pipeline.from_artifact(folder, vae), len(manifest.classes)
    assert len(pipe([0], sampler=SAMPLER).images) == 1
    for labels, guidance in (([0], "cfg"), ([0, null], "none")):
        with pytest.raises(ConfigError, match="this denoiser was never trained without a label"):
            pipe(labels, sampler=SAMPLER, guidance=guidance)
    guided = Pipeline.from_artifact(artifact(tmp_path / "main", vae, variant(), seed=1), vae, guide=folder)
    assert len(guided([0], sampler=SAMPLER, **AUTO).images) == 1
    with pytest.raises(ConfigError, match="its guide was never trained without a label"):
        guided([0, null], sampler=SAMPLER, **AUTO)


ANY_ORDER = {"times": {"kind": "independent", "absent": 0.1}}


@pytest.mark.parametrize(
    ("main", "guide", "sampled", "fits"),
    [
        ({}, {}, None, True),
        ({}, {"delta_t": 0.0}, None, False),
        ({}, ANY_ORDER, None, True),
        ({}, {}, 0.0, True),
        (ANY_ORDER, {}, None, True),
        (ANY_ORDER, {}, 0.5, False),
        ({"delta_t": 0.0, "path": [[0, 0], [0, 0.3], [0.7, 1], [1, 1]]}, {}, None, True),
    ],
    ids=["alike", "another offset", "guide of any order", "both elsewhere", "order of the guide", "order of neither", "path"],
)
def test_a_guide_must_know_the_order_that_is_sampled(
    main: dict[str, Any], guide: dict[str, Any], sampled: float | None, fits: bool, tmp_path: Path
) -> None:
    vae = texture_vae(tmp_path / "vae")
    folders = [artifact(tmp_path / name, vae, variant(**kind)) for name, kind in (("main", main), ("guide", guide))]
    pipe = Pipeline.from_artifact(folders[0], vae, guide=folders[1])
    with nullcontext() if fits else pytest.raises(ConfigError, match=r"trained along the path .* samples are drawn along"):
        pipe([0], sampler=SAMPLER, **AUTO, delta_t=sampled)


def test_a_snapshot_of_the_guide_can_be_chosen(tmp_path: Path) -> None:
    vae = texture_vae(tmp_path / "vae")
    folder = artifact(tmp_path / "train", vae, variant())
    guide = Pipeline.from_artifact(folder, vae, guide=folder, guide_step=7).guide
    assert guide is not None
    assert guide.snapshot.step == 7
    with pytest.raises(DataError, match="no snapshot of step 8"):
        Pipeline.from_artifact(folder, vae, guide=folder, guide_step=8)


@pytest.mark.parametrize("kind", KINDS)
def test_a_latent_that_is_not_finite_is_never_an_image(kind: str, tmp_path: Path) -> None:
    pipe = pipeline(tmp_path, kind)
    with torch.no_grad():
        next(iter(pipe.denoiser.model.final_layer.linear.parameters()))[0] = torch.nan
    with pytest.raises(NumericsError, match=r"image 0 of seed 3 is NaN or infinite from time 0\.\d+ on"):
        pipe([0, 1], seed=3, sampler=SAMPLER)


def test_guidance_beyond_all_numbers_stops(tmp_path: Path) -> None:
    pipe = pipeline(tmp_path)
    part = GuidanceParams(scale=1e38, interval=[0.0, 1.0])
    with pytest.raises(NumericsError, match="guidance scale"):
        pipe([0, 1], sampler=SAMPLER, guidance="cfg", texture=part, semantic=part)


def test_the_image_that_breaks_is_named(tmp_path: Path) -> None:
    pipe = pipeline(tmp_path)
    pipe.vae.decode = lambda z: torch.stack([torch.full((3, 16, 16), torch.inf if row == 2 else 0.0) for row in range(len(z))])
    with pytest.raises(NumericsError, match="decodes image 6 to NaN or infinity"):
        pipe.draw(4, [0, 1, 2], SAMPLER)


@pytest.mark.parametrize("kind", ["sfd", "dit"])
@pytest.mark.parametrize("guidance", ["none", "cfg"])
def test_bfloat16_moves_latents_by_its_rounding_alone(kind: str, guidance: str, tmp_path: Path) -> None:
    pipe = pipeline(tmp_path, kind)
    part = GuidanceParams(scale=2.0, interval=[0.0, 1.0])
    sampler = SAMPLER.model_copy(update={"guidance": guidance, "texture": part, "semantic": part})
    exact, rounded = (
        pipe.solve([0, 1], torch.tensor([0, 1]), sampler.model_copy(update={"precision": precision})).x
        for precision in ("float32", "bfloat16")
    )
    assert exact.dtype == rounded.dtype == torch.float32
    difference = float((exact - rounded).norm() / exact.norm())
    assert 0 < difference < 0.02


NAMES = ["Flags", "Food & Drink", "Symbols"]


def test_labels_are_found_by_name_in_any_case_and_by_index_of_any_kind() -> None:
    assert find_labels(["food & drink", "0", "SYMBOLS", 3], NAMES) == [1, 0, 2, 3]
    assert find_labels([np.int64(2), torch.tensor(1), True], NAMES) == [2, 1, 1]
    assert find_labels([0], []) == [0]
    assert find_labels(["cat", "Cat", "CAT"], ["Cat", "cat"]) == [1, 0, 1]


@pytest.mark.parametrize("label", ["4", "-1", "Animals", "", 4, -1, 0.5, None])
def test_an_unknown_label_is_an_error_that_lists_the_classes(label: object) -> None:
    with pytest.raises(ConfigError, match="0 Flags, 1 Food & Drink, 2 Symbols, or 3 for no class"):
        find_labels([label], NAMES)


def test_a_thousand_classes_are_not_listed() -> None:
    with pytest.raises(ConfigError, match=r"labels newt: give 0 to 999, or 1000 for no class$"):
        find_labels(["newt"], [str(number) + " kind" for number in range(1000)])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"evaluations": 0}, "these images cannot be drawn: evaluations: Input should be greater than or equal to 1"),
        ({"evaluations": 2}, "2 intervals cannot cover the 3 of the schedule"),
        ({"solver": "rk4"}, "solver: Input should be 'euler'"),
        ({"texture": {"scale": 2.0, "interval": [0.0, 1.0]}}, "texture.scale is 2.0, but guidance is none"),
        ({"colour": 1}, "colour: unknown key"),
    ],
)
def test_impossible_settings_are_errors_before_anything_is_drawn(changes: dict[str, object], said: str, tmp_path: Path) -> None:
    pipe = pipeline(tmp_path)
    pipe.denoiser.model.forward = None
    with pytest.raises(ConfigError, match=said):
        pipe(["cat"], **changes)


def test_more_levels_than_dit_has_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="1001 sampling steps were requested"):
        pipeline(tmp_path, "dit").require_possible([0], SAMPLER.model_copy(update={"evaluations": 1001}))


def test_internal_guidance_extrapolates_from_the_inner_head_in_the_same_pass(tmp_path: Path) -> None:
    vae = texture_vae(tmp_path / "vae")
    params = variant(inner={"block": 2, "weight": 0.5})
    pipe = Pipeline.from_artifact(artifact(tmp_path / "train", vae, params), vae)
    network, passes = pipe.denoiser.model, 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    network.register_forward_hook(count)
    changes = {"guidance": "internal", "texture": GuidanceParams(scale=3.0, interval=[0.0, 1.0]), "solver": "euler"}
    sampler = SAMPLER.model_copy(update=changes)
    drawn = pipe.latents(0, [0, 1], sampler)
    assert passes == drawn.evaluations == 6

    def by_formula(x: Tensor, times: SharedTimes) -> Tensor:
        output = network(x, times.t_tex, times.t_sem, torch.tensor([0, 1]))
        texture = output.inner + 3 * (output.prediction - output.inner)
        return torch.cat([texture[:, :4], output.prediction[:, 4:]], dim=1)

    noise = sample_noise(sampler.seed, [0, 1], tuple(drawn.x.shape[1:]))
    expected = integrate(by_formula, noise, Schedule.offset(0.3), 4, SolverSettings("euler", 6))
    torch.testing.assert_close(drawn.x, expected.x)


def test_internal_guidance_needs_an_inner_head(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no inner head; train it with inner"):
        pipeline(tmp_path)([0], sampler=SAMPLER, guidance="internal")


def test_a_path_of_corners_is_sampled_along_and_two_orders_are_refused(tmp_path: Path) -> None:
    pipe = pipeline(tmp_path)
    straight, by_offset = [[0, 0], [0, 0.3], [0.7, 1], [1, 1]], pipe.latents(0, [0], SAMPLER)
    torch.testing.assert_close(pipe.latents(0, [0], SAMPLER.model_copy(update={"path": straight})).x, by_offset.x)
    other = pipe([0], sampler=SAMPLER, path=[[0, 0], [0.5, 0], [1, 1]])
    assert not torch.equal(other.images, pipe([0], sampler=SAMPLER).images)
    with pytest.raises(ConfigError, match=r"delta_t is 0\.3, but a path is given, too"):
        pipe([0], sampler=SAMPLER, path=straight, delta_t=0.3)
    with pytest.raises(ConfigError, match="steps back"):
        pipe([0], sampler=SAMPLER, path=[[0, 0], [0.5, 0.5], [0.4, 1], [1, 1]])
    with pytest.raises(ConfigError, match=r"must begin with \[0, 0\]"):
        pipe([0], sampler=SAMPLER, path=[[0, 0.1], [1, 1]])
    with pytest.raises(ConfigError, match="has no semantics that could lead"):
        pipeline(tmp_path / "texture", "texture")([0], sampler=SAMPLER, path=straight)


def test_dit_is_guided_by_another_network_of_the_same_labels_and_steps_with_the_noise_of_its_images(tmp_path: Path) -> None:
    vae, params = texture_vae(tmp_path / "vae"), variant(**KINDS["dit"])
    guide = artifact(tmp_path / "guide", vae, params, seed=1)
    pipe = Pipeline.from_artifact(artifact(tmp_path / "train", vae, params), vae, guide=guide)
    labels, noise = torch.tensor([0, 1]), sample_noise(5, [3, 4], (4, 4, 4))
    sources = [generator(5, "step noise", index) for index in (3, 4)]

    def denoise(x: Tensor, level: int) -> Tensor:
        levels = torch.full((2,), float(level))
        main, weak = (network.model(x, levels, labels) for network in (pipe.denoiser, pipe.guide) if network is not None)
        return torch.cat([(weak + 2 * (main - weak))[:, :4], main[:, 4:]], dim=1)

    def step_noise(_: int) -> Tensor:
        return torch.stack([torch.randn(4, 4, 4, generator=source) for source in sources])

    changes = {"guidance": "autoguidance", "guide": str(guide), "gaussian_solver": "ddpm", "seed": 5}
    changes["texture"] = GuidanceParams(scale=2.0, interval=[0.0, 1.0])
    found = pipe.solve([3, 4], labels, SAMPLER.model_copy(update=changes)).x
    torch.testing.assert_close(found, sample_gaussian(denoise, noise, "ddpm", 6, step_noise).x, rtol=1e-4, atol=1e-4)


def test_pixels_are_rounded_and_clamped(tmp_path: Path) -> None:
    pipe = pipeline(tmp_path)
    values = torch.tensor([-3.0, -1.0, 0.0, 0.999, 1.0, 3.0])
    pipe.vae.decode = lambda _: values[:, None, None, None].expand(-1, 3, 16, 16)
    images = pipe.decode(Split(torch.zeros(6, 4, 4, 4), None))
    assert images[:, 0, 0, 0].tolist() == [0, 0, 128, 255, 255, 255]


def test_a_trajectory_shows_predicted_images_and_semantics_as_they_are(tmp_path: Path) -> None:
    pipe = pipeline(tmp_path)
    reference = torch.randn(50, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    shown = trajectory.record_trajectory(pipe, SAMPLER.model_copy(update={"solver": "ab2"}), reference)
    labels = [index % 3 for index in range(trajectory.IMAGES)]
    assert shown["labels"].tolist() == labels
    assert shown["u"].tolist() == pytest.approx(Schedule.offset(0.3).grid(6).tolist())
    assert np.array_equal(shown["textures"][-1], pipe(labels, sampler=SAMPLER).images.numpy())
    states: list[Tensor] = []
    predictions: list[Tensor] = []

    def observe(_: float, x: Tensor, predicted: Tensor) -> None:
        states.append(pipe.denoiser.composite.split(x).semantic)
        predictions.append(pipe.decode(pipe.denoiser.composite.split(predicted)))

    pipe.solve(list(range(trajectory.IMAGES)), torch.tensor(labels), SAMPLER, observe=observe)
    assert np.array_equal(shown["textures"], torch.stack(predictions).numpy())
    assert np.array_equal(shown["semantics"], trajectory._colours(torch.stack(states), reference))


def test_semantics_are_coloured_by_deviations_from_the_mean_along_principal_components() -> None:
    spread, mean = torch.tensor([1.0, 4.0]), torch.tensor([5.0, -2.0])
    reference = (mean + spread * torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]]))[:, :, None, None]
    deviation = spread * (4 / 3) ** 0.5  # of four values
    states = mean + torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [9.0, 9.0]]) * deviation
    colours = trajectory._colours(states[None, :, :, None, None], reference)[0, :, :, 0, 0].astype(int)
    assert colours[0].tolist() == [128, 128, 128]
    assert np.abs(colours[1] - 127.5).tolist() == pytest.approx([63.75, 0, 0], abs=0.76)
    assert np.abs(colours[2] - 127.5).tolist() == pytest.approx([0, 63.75, 0], abs=0.76)
    assert set(colours[3].tolist()) <= {0, 128, 255}
