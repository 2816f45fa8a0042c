import pytest
from emoji import emoji

from sfd_core.cli.main import app
from sfd_core.cli.options import UNCHANGED
from sfd_core.cli.sampling import find_labels
from sfd_core.experiment.params import SamplerParams
from sfd_core.host.errors import ConfigError

PARAMS = emoji()
CLASSES = ["Flags", "Food & Drink", "Symbols"]


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
        (["--evaluations", "0"], "evaluations"),
        (["--shift", "-1"], "shift"),
    ],
)
def test_options_that_do_not_fit_are_errors_that_name_them(words: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        sampler_of(*words)


def test_labels_are_found_by_name_in_any_case_and_by_index() -> None:
    assert find_labels(["food & drink", "0", "SYMBOLS"], CLASSES) == [1, 0, 2]


@pytest.mark.parametrize("label", ["3", "-1", "Animals", ""])
def test_an_unknown_label_is_an_error_that_lists_the_classes(label: str) -> None:
    with pytest.raises(ConfigError, match="0 Flags, 1 Food & Drink, 2 Symbols"):
        find_labels([label], CLASSES)
