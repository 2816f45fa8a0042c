import pytest
from emoji import emoji

from sfd_core.cli.main import app
from sfd_core.cli.options import UNCHANGED, Drawing
from sfd_core.experiment.params import SamplerParams
from sfd_core.host.errors import ConfigError

PARAMS = emoji()


def sampler_of(*words: str) -> SamplerParams:
    given = app.parse_args(["sample", "sfd", *words])[1].arguments
    return given.get("drawing", UNCHANGED).sampler(PARAMS, given.get("evaluations"))


def test_without_options_the_sampler_is_the_experiment_s() -> None:
    assert sampler_of() == PARAMS.evaluate.sampler


def test_options_replace_values_and_leave_the_others() -> None:
    words = ["--seed", "7", "--evaluations", "12", "--solver", "heun", "--guidance", "cfg", "--texture-scale", "1.5"]
    sampler = sampler_of(*words, "--semantic-interval", "0.2", "0.8")
    assert (sampler.seed, sampler.evaluations, sampler.solver, sampler.guidance) == (7, 12, "heun", "cfg")
    assert (sampler.texture.scale, sampler.texture.interval) == (1.5, PARAMS.evaluate.sampler.texture.interval)
    assert (sampler.semantic.scale, sampler.semantic.interval) == (PARAMS.evaluate.sampler.semantic.scale, [0.2, 0.8])
    assert sampler.batch_size == PARAMS.evaluate.sampler.batch_size


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--guidance", "autoguidance"], "guide"),
        (["--guide", "outputs/train/dit"], "guide"),
        (["--texture-interval", "0.8", "0.2"], "interval"),
        (["--shift", "-1"], "shift"),
        (["--guidance", "none", "--texture-scale", "3"], "texture.scale is 3.0, but guidance is none, which would ignore it"),
        (["--texture-scale", "1.5"], "texture.scale is 1.5, but guidance is none"),
        (["--guidance", "cfg", "--texture-scale", "2", "--guide-step", "200"], "guide_step is 200, but there is no guide"),
        (["--guidance", "cfg"], "--guidance cfg would change nothing: its scales are 1"),
    ],
)
def test_options_that_do_not_fit_are_errors_that_name_them(words: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        sampler_of(*words)


@pytest.mark.parametrize(
    ("variant", "drawing", "named"),
    [
        ("dit", Drawing(solver="heun"), "--solver"),
        ("dit", Drawing(shift=2.0), "--shift"),
        ("sfd", Drawing(gaussian_solver="ddpm"), "--gaussian-solver"),
        ("lightningdit", Drawing(guidance="cfg", semantic_scale=2.0), "--semantic-scale"),
        ("lightningdit", Drawing(guidance="cfg", semantic_interval=(0.0, 0.5)), "--semantic-interval"),
    ],
)
def test_options_that_would_change_no_image_are_refused(variant: str, drawing: Drawing, named: str) -> None:
    with pytest.raises(ConfigError, match=f"^{named} would change nothing"):
        drawing.require_meaning(PARAMS.variants[variant], PARAMS.evaluate.sampler)


def test_what_the_adaptive_solver_chooses_is_refused_wherever_it_is_asked_for() -> None:
    adaptive = PARAMS.evaluate.sampler.model_copy(update={"solver": "dopri5"})
    with pytest.raises(ConfigError, match=r"^--evaluations and --shift would change nothing: dopri5 chooses"):
        Drawing(shift=2.0).require_meaning(PARAMS.variants["sfd"], adaptive, [25, 50])
    Drawing().require_meaning(PARAMS.variants["dit"], adaptive, [25, 50])


@pytest.mark.parametrize("variant", ["sfd", "lightningdit", "dit"])
def test_options_for_every_denoiser_are_taken_by_each(variant: str) -> None:
    drawing = Drawing(seed=1, guidance="cfg", texture_scale=2.0, texture_interval=(0.0, 0.5))
    drawing.require_meaning(PARAMS.variants[variant], PARAMS.evaluate.sampler, 20)


def test_a_path_or_an_offset_replaces_the_order_of_the_experiment() -> None:
    corners = [[0.0, 0.0], [0.1, 0.8], [1.0, 1.0]]
    assert sampler_of("--path", "[[0, 0], [0.1, 0.8], [1, 1]]").path == corners
    sampler = PARAMS.evaluate.sampler.model_copy(update={"path": corners})
    params = PARAMS.model_copy(update={"evaluate": PARAMS.evaluate.model_copy(update={"sampler": sampler})})
    assert (Drawing(delta_t=0.5).sampler(params).path, Drawing(delta_t=0.5).sampler(params).delta_t) == (None, 0.5)
    assert Drawing(seed=1).sampler(params).path == corners
    for words in ("[[0, 0], [1, 0.5]]", "[0, 1]", "0.3", "[[0, 0], [1, 1]"):
        with pytest.raises(ConfigError, match="path"):
            sampler_of("--path", words)
    with pytest.raises(ConfigError, match="a path is given, too"):
        sampler_of("--path", "[[0, 0], [1, 1]]", "--delta-t", "0.3")


def test_a_budget_too_small_for_another_variant_is_no_matter() -> None:
    assert sampler_of("--evaluations", "2").evaluations == 2


def test_another_guide_is_taken_at_its_last_step() -> None:
    sampler = PARAMS.evaluate.sampler.model_copy(update={"guidance": "autoguidance", "guide": "weak", "guide_step": 200})
    params = PARAMS.model_copy(update={"evaluate": PARAMS.evaluate.model_copy(update={"sampler": sampler})})
    assert Drawing(seed=1).sampler(params).guide_step == 200
    assert Drawing(guide="other").sampler(params).guide_step is None
    assert Drawing(guide="other", guide_step=7).sampler(params).guide_step == 7


def test_guidance_none_switches_scales_off() -> None:
    guided = sampler_of("--guidance", "cfg", "--texture-scale", "1.5")
    params = PARAMS.model_copy(update={"evaluate": PARAMS.evaluate.model_copy(update={"sampler": guided})})
    assert Drawing(guidance="none").sampler(params).texture.scale == 1.0
