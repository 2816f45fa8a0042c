"""Tokens that are stored and tokens that are computed when asked for are the same tokens to every stage."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from denoisers import variant
from small_stages import ROWS, TRAIN, Stages, lay_out
from torch.utils.flop_counter import FlopCounterMode

from sfd_core.data.store.shards import ShardReader
from sfd_core.experiment.params import RepaParams
from sfd_core.host.errors import DataError, IdentityError
from sfd_core.latents.composite import load_statistics
from sfd_core.latents.tokens import ComputedTokens, StoredTokens, open_tokens, target_flops
from sfd_core.stages.train import TrainInputs, train_variant
from sfd_core.training.history import read_history

CPU = torch.device("cpu")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stages:
    monkeypatch.chdir(tmp_path)
    return lay_out(tmp_path, stores=(True, False))


def test_both_sources_give_the_same_tokens(project: Stages) -> None:
    stored, computed = project.tokens(True), project.tokens(False)
    assert (type(stored), type(computed)) == (StoredTokens, ComputedTokens)
    for name in ("encoder", "prepare", "channels", "grid"):
        assert getattr(stored, name) == getattr(computed, name)
    assert len(stored) == len(computed) == 12
    rows = [7, 0, 0, 11, 3, 4, 5]
    for source in (stored, computed):
        pairs = source.pairs(rows)
        assert (pairs.shape, pairs.dtype) == ((7, 2, 64, 4, 4), torch.float16)
        mirrored = torch.tensor([True, False, True, True, False, False, True])
        expected = torch.stack([pair[int(side)] for pair, side in zip(pairs, mirrored, strict=True)])
        torch.testing.assert_close(source.tokens(source.read(rows, mirrored)), expected, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(stored.pairs(rows), computed.pairs(rows), rtol=2e-3, atol=2e-3)
    assert (stored.pairs([0])[:, 0] != stored.pairs([0])[:, 1]).any()


def test_stored_tokens_cost_a_training_nothing_and_computed_ones_a_pass_of_the_encoder(project: Stages) -> None:
    computed = project.tokens(False)
    image = computed.read([0], torch.tensor([False]))
    with FlopCounterMode(display=False) as counter:
        computed.tokens(torch.cat([image] * 2))
    assert 2 * target_flops(computed) == counter.get_total_flops() > 0
    assert target_flops(project.tokens(True)) == 0


def test_stored_tokens_are_read_as_they_are(project: Stages) -> None:
    tokens = ShardReader(project.features(True) / "train")["tokens"].array
    source = project.tokens(True)
    np.testing.assert_array_equal(source.pairs(range(12)).numpy(), tokens)
    np.testing.assert_array_equal(
        source.tokens(source.read([2, 5], torch.tensor([False, True]))).numpy(), [tokens[2, 0], tokens[5, 1]]
    )


def test_without_storing_the_statistics_are_the_same_and_little_is_written(project: Stages) -> None:
    statistics = [load_statistics(project.features(store) / "statistics.safetensors")["token"] for store in (True, False)]
    torch.testing.assert_close(statistics[0].mean, statistics[1].mean, rtol=0, atol=0)
    torch.testing.assert_close(statistics[0].std, statistics[1].std, rtol=0, atol=0)
    written = sorted(path.relative_to(project.features(False)).as_posix() for path in project.features(False).rglob("*.*"))
    assert written == ["held_out/tokens.json", "statistics.safetensors", "train/tokens.json"]


def test_computed_tokens_may_be_the_target_of_a_loss(project: Stages) -> None:
    source = project.tokens(False)
    tokens = source.tokens(source.read([0, 1], torch.tensor([False, True]))).float()
    weight = torch.ones(64, requires_grad=True)
    torch.nn.functional.cosine_similarity(tokens * weight[:, None, None], tokens, dim=1).sum().backward()
    assert weight.grad is not None


def test_every_later_stage_runs_without_stored_tokens_and_agrees(project: Stages) -> None:
    for store in (True, False):
        project.compress(store)
    stored, computed = (project.encode(store=store) for store in (True, False))
    for part in ROWS:
        for name in ("z_tex", "z_sem", "z_pca"):
            first, second = (ShardReader(folders.encode / part)[name].array for folders in (stored, computed))
            np.testing.assert_allclose(first, second, rtol=0.02, atol=0.02)
    metrics = [json.loads((folders.semantic_vae / "metrics.json").read_text()) for folders in (stored, computed)]
    assert metrics[0]["mse_held_out"] == pytest.approx(metrics[1]["mse_held_out"], rel=1e-2)
    chosen = variant(repa=RepaParams(weight=0.5, mode="cosine+mse", targets="encoder", block=2, width=16))
    losses = []
    for folders in (stored, replace(stored, features=computed.features)):
        out = project.path / folders.features.name / "trained"
        train_variant("v", chosen, TRAIN, TrainInputs.open(chosen, folders), out)
        losses.append(read_history(out / "history.csv")[-1]["repa"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_another_encoder_or_other_images_than_the_recipe_names_are_refused(project: Stages) -> None:
    torch.manual_seed(1)
    torch.save(timm.create_model("test_vit").state_dict(), project.path / "weights.pth")
    with pytest.raises(IdentityError, match=r"tokens\.json was written with the encoder .* restore its weights or run"):
        project.tokens(False)
    with pytest.raises(IdentityError, match=r"belongs to other images than those in .*held_out"):
        open_tokens(project.features(False) / "train", project.prepare / "held_out", CPU)


def test_a_damaged_recipe_is_named(project: Stages) -> None:
    for text in ("", "{}", '{"params": {"encoder": 1}}'):
        (project.features(False) / "train" / "tokens.json").write_text(text)
        with pytest.raises(DataError, match=r"tokens\.json is no token recipe .* run `dvc repro features`"):
            project.tokens(False)


def test_missing_features_say_what_to_run(project: Stages) -> None:
    with pytest.raises(DataError, match="does not exist; run the stage"):
        open_tokens(project.path / "nowhere" / "train", project.prepare / "train", CPU)
