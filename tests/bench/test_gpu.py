"""The measurements of `make gpu-bench` run with tiny shapes on a CPU, so that they are ready where a GPU is."""

from dataclasses import replace
from pathlib import Path

import pytest

from infra.bench.speed import measure_eager, measure_encoder, measure_sampling, measure_training, training_flops
from infra.bench.workload import Workload
from sfd_core.experiment.sizes import MODEL_SIZES
from sfd_core.models.denoisers.factory import parameter_count

TINY = Workload("tiny", batch=2, texture=4, semantic=2, grid=4, images=4)


@pytest.mark.parametrize(
    "workload",
    [TINY, replace(TINY, model="dit", semantic=0), replace(TINY, semantic=0), replace(TINY, token_channels=8)],
    ids=["sfd", "dit", "texture", "repa"],
)
def test_the_measurement_of_training_runs_anywhere(tmp_path: Path, workload: Workload) -> None:
    speed = measure_training(workload, tmp_path, compiled=False, steps=2)
    assert speed.images_per_second > 0
    assert 0 < speed.utilisation < 1


def test_the_measurements_of_the_baseline_and_of_an_encoder_run_anywhere(tmp_path: Path) -> None:
    assert 0 < measure_eager(TINY, tmp_path, steps=2).utilisation < 1
    assert measure_encoder("vit_tiny_patch16_224", input_size=32, grid=2, batch=2) > 0


@pytest.mark.parametrize("guide", [None, TINY])
def test_the_measurement_of_sampling_runs_anywhere(guide: Workload | None) -> None:
    assert measure_sampling(TINY, evaluations=5, guide=guide, images=2) > 0


def test_operations_of_training_are_six_for_a_parameter_and_token_and_those_of_attention() -> None:
    workload = Workload("S", batch=256, grid=16)
    model, size, tokens = workload.network(), MODEL_SIZES["S"], workload.tokens
    once = sum(value.numel() for name, value in model.named_parameters() if "adaLN" in name or "embedder" in name)
    attention = 12 * size.depth * tokens**2 * size.width
    expected = 6 * (parameter_count(model) - once - model.pos_embed.numel()) * tokens + attention
    assert training_flops(workload) == pytest.approx(expected, rel=0.02)
