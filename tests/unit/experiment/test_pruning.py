"""A point of a search stops early where its validation loss is above the median of the finished points, and only there."""

from pathlib import Path
from typing import Any

import pytest
from emoji import emoji_values

from sfd_core.experiment.pruning import Judge, Pruned, highest_losses, limits_of, read_losses, require_comparable, step_behind
from sfd_core.host.errors import ConfigError

CURVES = [{100: 4.0, 200: 1.0}, {100: 2.0, 200: 2.0}, {100: 1.0, 200: 3.0}, {100: 3.0}]
VALUES: dict[str, Any] = emoji_values()


def line(step: int, loss: str, rest: str = ", semantic 0.1") -> str:
    return f"sfd: step {step}, validation loss: texture {loss}{rest}"


def test_the_limit_is_the_median_of_four_finished_points_or_more() -> None:
    assert highest_losses(CURVES) == {100: 2.5}
    assert highest_losses(CURVES[:3]) == {}
    assert highest_losses([*CURVES, {200: float("nan")}]) == {100: 2.5}
    assert highest_losses([*CURVES, {100: 9.0}]) == {100: 3.0}


def test_the_limit_is_that_of_optunas_median_pruner() -> None:
    import optuna  # noqa: PLC0415 - takes a second

    study = optuna.create_study(pruner=optuna.pruners.MedianPruner(n_startup_trials=4))
    for curve in CURVES:
        study.add_trial(optuna.trial.create_trial(value=0.0, intermediate_values=curve))
    for loss in (2.0, 2.4, 2.6, 3.0):
        trial = study.ask()
        trial.report(loss, 100)
        assert trial.should_prune() == (step_behind({100: loss}, highest_losses(CURVES)) is not None), loss
        study.tell(trial, state=optuna.trial.TrialState.FAIL)


def test_a_loss_is_judged_at_its_own_step_and_a_tie_goes_on() -> None:
    highest = {100: 2.5, 300: 1.0}
    assert step_behind({100: 2.5, 200: 99.0, 300: 1.0}, highest) is None
    assert step_behind({300: 1.1, 100: 2.6}, highest) == 100
    assert step_behind({100: float("nan")}, highest) == 100
    assert step_behind({100: 9.0}, {}) is None


def test_a_training_is_stopped_by_the_line_that_is_behind() -> None:
    judge = Judge({100: 2.5, 200: 1.0})
    for said in ("sfd: step 100/400 loss 9.9 30 images/s, 60 s left", line(100, "2.5"), line(150, "9"), "Running stage 'x':"):
        judge.read(said)
    with pytest.raises(Pruned, match=r"validation loss 1\.1 at step 200 is above 1, the median of the finished points"):
        judge.read(line(200, "1.1", ""))
    assert judge.losses == {100: 2.5, 150: 9.0, 200: 1.1}
    with pytest.raises(Pruned):
        judge.require_level()


def test_nothing_is_stopped_after_its_last_step() -> None:
    values = {"train": {"optimisation": {"steps": 200}}}
    assert limits_of({100: 2.5, 200: 1.0, 300: 0.5}, values) == {100: 2.5}


def test_losses_of_a_finished_training_are_rounded_as_they_are_printed(tmp_path: Path) -> None:
    assert read_losses(tmp_path / "validation.csv") == {}
    (tmp_path / "validation.csv").write_text("step,texture,semantic\n100,1.23456,0.2\n200,0.9,0.1\n")
    assert read_losses(tmp_path / "validation.csv") == {100: 1.235, 200: 0.9}
    (tmp_path / "validation.csv").write_text("step,texture,semantic\n")
    assert read_losses(tmp_path / "validation.csv") == {}


def test_points_whose_losses_do_not_compare_are_refused() -> None:
    train = VALUES["train"] | {"validation_images": 64}
    values = VALUES | {"train": train}
    require_comparable(["learning_rate", "size", "repa.weight", "train.optimisation.batch_size"], values)
    for key in ("delta_t", "path", "texture_vae.channels", "train.validation_images"):
        with pytest.raises(ConfigError, match=f"points that differ in {key} do not compare"):
            require_comparable(["learning_rate", key], values)
    for key, given in (("validation_images", 0), ("snapshots", 1)):
        with pytest.raises(ConfigError, match=f"train.{key} is {given}: no validation loss"):
            require_comparable(["learning_rate"], values | {"train": train | {key: given}})
