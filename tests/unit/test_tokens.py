"""Tokens that are stored and tokens that are computed when asked for are the same tokens to every stage."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from denoisers import variant

from sfd_core.composite import load_statistics
from sfd_core.config import EncodeParams, FeaturesParams, Optimisation, RepaParams, SemanticVAEParams, TrainParams
from sfd_core.data.shard_writer import ShardWriter
from sfd_core.data.shards import FieldSpec, ShardReader
from sfd_core.errors import DataError, IdentityError
from sfd_core.models.texture_vae import TextureVAE, TextureVAEShape
from sfd_core.stages.encode import EncodeInputs, encode
from sfd_core.stages.features import extract_features
from sfd_core.stages.semantic_vae import make_semantic_vae
from sfd_core.stages.train import TrainFolders, TrainInputs, train_variant
from sfd_core.tokens import ComputedTokens, StoredTokens, TokenSource, open_tokens

CPU = torch.device("cpu")
ROWS = {"train": 12, "held_out": 8}
OPTIMISATION = Optimisation(
    steps=3, batch_size=4, warmup_steps=1, decay_steps=0, final_rate=1.0, betas=[0.9, 0.95], weight_decay=0.0, clip_norm=1.0,
    precision="float32", checkpoint_every=1, seed=0,
)  # fmt: skip
SEMANTIC_VAE = SemanticVAEParams(
    weights=None,
    standardise=True,
    channels=2,
    width=16,
    depth=1,
    heads=2,
    kl_weight=1e-7,
    pca_channels=3,
    learning_rate=1e-3,
    optimisation=OPTIMISATION,
)


@dataclass(frozen=True)
class Project:
    """Folders of stages, with the tokens stored and not."""

    path: Path
    params: FeaturesParams

    @property
    def prepare(self) -> Path:
        return self.path / "prepare"

    def features(self, store: bool) -> Path:
        return self.path / f"features-{store}"

    def tokens(self, store: bool, part: str = "train") -> TokenSource:
        return open_tokens(self.features(store) / part, self.prepare / part, CPU)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(tmp_path)
    chance = np.random.default_rng(0)
    fields = {"image": FieldSpec("uint8", (3, 32, 32)), "label": FieldSpec("int64", ())}
    for part, rows in ROWS.items():
        with ShardWriter(tmp_path / "prepare" / part, fields, {"classes": ["a", "b"], "resolution": 32}) as writer:
            images = chance.integers(0, 256, (rows, 3, 32, 32), dtype=np.uint8)
            writer.append(image=images, label=np.arange(rows) % 2)
    torch.manual_seed(0)
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "weights.pth")
    values = {
        "encoder": "test_vit", "weights": str(tmp_path / "weights.pth"), "input_size": 64, "grid": 4, "precision": "float32",
        "batch_size": 5, "store": True,
    }  # fmt: skip
    found = Project(tmp_path, FeaturesParams.model_validate(values))
    for store in (True, False):
        extract_features(found.params.model_copy(update={"store": store}), found.prepare, found.features(store))
    return found


def test_both_sources_give_the_same_tokens(project: Project) -> None:
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
        torch.testing.assert_close(source.chosen(rows, mirrored), expected, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(stored.pairs(rows), computed.pairs(rows), rtol=2e-3, atol=2e-3)
    assert (stored.pairs([0])[:, 0] != stored.pairs([0])[:, 1]).any()


def test_stored_tokens_are_read_as_they_are(project: Project) -> None:
    tokens = ShardReader(project.features(True) / "train")["tokens"].array
    source = project.tokens(True)
    np.testing.assert_array_equal(source.pairs(range(12)).numpy(), tokens)
    np.testing.assert_array_equal(source.chosen([2, 5], torch.tensor([False, True])).numpy(), [tokens[2, 0], tokens[5, 1]])


def test_without_storing_the_statistics_are_the_same_and_little_is_written(project: Project) -> None:
    statistics = [load_statistics(project.features(store) / "statistics.safetensors")["token"] for store in (True, False)]
    torch.testing.assert_close(statistics[0].mean, statistics[1].mean, rtol=0, atol=0)
    torch.testing.assert_close(statistics[0].std, statistics[1].std, rtol=0, atol=0)
    written = sorted(path.relative_to(project.features(False)).as_posix() for path in project.features(False).rglob("*.*"))
    assert written == ["held_out/tokens.json", "statistics.safetensors", "train/tokens.json"]


def test_computed_tokens_may_be_the_target_of_a_loss(project: Project) -> None:
    tokens = project.tokens(False).chosen([0, 1], torch.tensor([False, True])).float()
    weight = torch.ones(64, requires_grad=True)
    torch.nn.functional.cosine_similarity(tokens * weight[:, None, None], tokens, dim=1).sum().backward()
    assert weight.grad is not None


def run(project: Project, store: bool) -> Path:
    """Run the stages after `features` and return their folder."""
    folder = project.path / f"run-{store}"
    make_semantic_vae(SEMANTIC_VAE, project.prepare, project.features(store), folder / "semantic_vae")
    torch.manual_seed(0)
    (folder / "texture_vae").mkdir()
    TextureVAE(TextureVAEShape(channels=4, downsampling=8, width=8, depth=1)).save(folder / "texture_vae")
    inputs = EncodeInputs(project.prepare, project.features(store), folder / "texture_vae", folder / "semantic_vae")
    encode(EncodeParams(posterior="sample", dtype="float32", batch_size=5, seed=0), inputs, folder / "encode")
    return folder


def test_every_later_stage_runs_without_stored_tokens_and_agrees(project: Project) -> None:
    stored, computed = (run(project, store) for store in (True, False))
    for part in ROWS:
        for name in ("z_tex", "z_sem", "z_pca"):
            first, second = (ShardReader(folder / "encode" / part)[name].array for folder in (stored, computed))
            np.testing.assert_allclose(first, second, rtol=0.02, atol=0.02)
    metrics = [json.loads((folder / "semantic_vae" / "metrics.json").read_text()) for folder in (stored, computed)]
    assert metrics[0]["mse_held_out"] == pytest.approx(metrics[1]["mse_held_out"], rel=1e-2)
    chosen = variant(repa=RepaParams(weight=0.5, mode="cosine+mse", targets="encoder", block=2, width=16))
    train = TrainParams(optimisation=OPTIMISATION, snapshots=1, ema_decay=0.9, ema_warmup=True, class_dropout=0.1, flips=True)
    losses = []
    for store, folder in ((True, stored), (False, computed)):
        folders = TrainFolders(stored / "encode", project.features(store), project.prepare, stored / "semantic_vae")
        inputs = TrainInputs.open(chosen, folders)
        train_variant("v", chosen, train, inputs, folder / "train")
        header, *_, last = (folder / "train" / "history.csv").read_text().splitlines()
        losses.append(float(dict(zip(header.split(","), last.split(","), strict=True))["repa"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_another_encoder_or_other_images_than_the_recipe_names_are_refused(project: Project) -> None:
    torch.manual_seed(1)
    torch.save(timm.create_model("test_vit").state_dict(), project.path / "weights.pth")
    with pytest.raises(IdentityError, match=r"tokens\.json was written with the encoder .* restore its weights or run"):
        project.tokens(False)
    with pytest.raises(IdentityError, match=r"belongs to other images than .*held_out holds"):
        open_tokens(project.features(False) / "train", project.prepare / "held_out", CPU)


def test_a_damaged_recipe_is_named(project: Project) -> None:
    for text in ("", "{}", '{"params": {"encoder": 1}}'):
        (project.features(False) / "train" / "tokens.json").write_text(text)
        with pytest.raises(DataError, match=r"tokens\.json is no recipe of tokens .* run `dvc repro features`"):
            project.tokens(False)


def test_missing_features_say_what_to_run(project: Project) -> None:
    with pytest.raises(DataError, match="does not exist; run the stage"):
        open_tokens(project.path / "nowhere" / "train", project.prepare / "train", CPU)
