import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from emoji import emoji
from same_outputs import bytes_below

from sfd_core.data.store.shard_writer import ShardWriter
from sfd_core.data.store.shards import FieldSpec
from sfd_core.evaluation.evaluator import Evaluator
from sfd_core.experiment.params import Params, parse_params
from sfd_core.host.errors import DataError
from sfd_core.models.vaes.texture_vae import TextureVAE, TextureVAEShape
from sfd_core.stages.reference import random_rows, reference


@pytest.fixture(scope="module")
def params() -> Params:
    values = emoji().model_dump(mode="json")
    values["reference"] |= {"extractors": ["efficientnet_lite0"], "batch_size": 8}
    values["evaluate"] |= {"snapshot_samples": 6, "final_samples": 20, "kid_subset_size": 5}
    return parse_params(values)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    generator = torch.Generator().manual_seed(0)
    for part, count in (("train", 14), ("held_out", 7)):
        small = torch.rand(count, 3, 4, 4, generator=generator)
        images = (torch.nn.functional.interpolate(small, size=(16, 16), mode="bilinear") * 255).to(torch.uint8)
        with ShardWriter(folder / "prepare" / part, {"image": FieldSpec("uint8", (3, 16, 16))}, {}) as writer:
            writer.append(image=images.numpy())
        if part == "train":
            vae = TextureVAE(TextureVAEShape(channels=4, downsampling=8, width=8, depth=1))
            vae.start_from_pca(images / 127.5 - 1)
    (folder / "texture_vae").mkdir()
    vae.save(folder / "texture_vae")
    return folder


@pytest.fixture(scope="module")
def out(inputs: Path, params: Params, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("outputs") / "reference"
    reference(params, inputs / "prepare", inputs / "texture_vae", path)
    return path


def test_floor_ceiling_and_subset_are_measured_at_both_sample_counts(out: Path) -> None:
    metrics = json.loads((out / "metrics.json").read_text())
    for name, final in (("floor", 14), ("ceiling", 20), ("train_subset", 20)):
        number, snapshot = metrics[name]["fd_efficientnet_lite0"], metrics["snapshot"][name]["fd_efficientnet_lite0"]
        assert number["protocol"]["samples"] == final, "mirror images count, and no more than there are"
        assert snapshot["protocol"]["samples"] == 6
        assert 0 < number["value"] < snapshot["value"], "fewer samples, larger distance"
    assert metrics["train_subset"]["fd_efficientnet_lite0"]["value"] < metrics["floor"]["fd_efficientnet_lite0"]["value"]
    assert metrics["nearest_distance"]["held_out_median"] > 0


def test_the_evaluator_reads_what_the_stage_wrote(out: Path, params: Params) -> None:
    evaluator = Evaluator.load(out, params.reference, params.evaluate.kid_subset_size)
    assert evaluator.references["efficientnet_lite0"].images == 28
    assert np.isfinite(list(evaluator.score(evaluator.features(torch.zeros(6, 3, 16, 16, dtype=torch.uint8))).values())).all()


def test_a_second_run_writes_the_same_bytes(out: Path, inputs: Path, params: Params, tmp_path: Path) -> None:
    reference(params, inputs / "prepare", inputs / "texture_vae", tmp_path / "again")
    assert bytes_below(tmp_path / "again") == bytes_below(out)


def test_a_missing_input_leaves_nothing_behind(inputs: Path, params: Params, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="dvc repro texture_vae"):
        reference(params, inputs / "prepare", tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_so_few_held_out_images_that_nothing_can_be_measured_of_them_are_refused_at_once(
    inputs: Path, params: Params, tmp_path: Path
) -> None:
    shutil.copytree(inputs / "prepare" / "train", tmp_path / "prepare" / "train")
    for count in (3, 2):
        shutil.rmtree(tmp_path / "prepare" / "held_out", ignore_errors=True)
        with ShardWriter(tmp_path / "prepare" / "held_out", {"image": FieldSpec("uint8", (3, 16, 16))}, {}) as writer:
            writer.append(image=np.random.default_rng(0).integers(0, 256, (count, 3, 16, 16), dtype=np.uint8))
        if count == 3:
            reference(params, tmp_path / "prepare", inputs / "texture_vae", tmp_path / "out")
    with pytest.raises(DataError, match=r"held_out has 2 held-out images, but .* need 3 .* change prepare.held_out"):
        reference(params, tmp_path / "prepare", inputs / "texture_vae", tmp_path / "out")


def test_fewer_random_rows_are_a_prefix_of_more() -> None:
    many, few = random_rows(100, 60, 0, "a"), random_rows(20, 60, 0, "a")
    assert len(many) == len(set(many.tolist())) == 60
    np.testing.assert_array_equal(many[:20], few)
    assert not np.array_equal(few, random_rows(20, 60, 0, "b"))
