"""Images a second of the extraction of latents as a whole, against its networks alone on images that are in memory already."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Self, cast

import numpy as np
import pytest
import timm
import torch
from emoji import emoji
from latent_diffusion import LatentDiffusionVAE
from pytest_benchmark.fixture import BenchmarkFixture

from sfd_core.data.store.shard_writer import ShardWriter
from sfd_core.data.store.shards import FieldSpec, ShardReader
from sfd_core.experiment.params import EncodeParams, FeaturesParams, LDMVAEParams, Params, TrainedVAEParams
from sfd_core.experiment.presets import load_preset
from sfd_core.host.processes import Processes
from sfd_core.latents.composite import ChannelStatistics
from sfd_core.latents.compressors import SemanticCompressors
from sfd_core.latents.tokens import TokenRecipe
from sfd_core.models.encoders.encoder import Encoder, load_encoder
from sfd_core.models.public.image_vae import read_published_vae
from sfd_core.models.vaes.image_vae import ImageVAE
from sfd_core.models.vaes.pca import PCA
from sfd_core.models.vaes.semantic_vae import SemanticVAE
from sfd_core.models.vaes.texture_vae import TextureVAE, TextureVAEShape
from sfd_core.stages.encode import PARTS, EncodeInputs, Sources

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.bench, pytest.mark.timeout(1800)]


@dataclass(frozen=True)
class Laboratory:
    """What `encode` reads, with random weights of true shapes, in the working folder; tokens are computed when asked for."""

    params: EncodeParams
    encoder: Encoder
    inputs: EncodeInputs

    @classmethod
    def lay_out(cls, params: Params, features: FeaturesParams, vae: ImageVAE, images: int) -> Self:
        inputs = EncodeInputs(*map(Path, ("prepare", "features", "texture_vae", "semantic_vae")))
        for folder in (inputs.features, inputs.texture_vae, inputs.semantic_vae):
            folder.mkdir()
        encoder, side = load_encoder(features), params.prepare.resolution
        fields = {"image": FieldSpec("uint8", (3, side, side)), "label": FieldSpec("int64", ())}
        for part, rows in zip(PARTS, (images, 1), strict=True):
            with ShardWriter(inputs.prepare / part, fields, {"classes": ["a"]}) as writer:
                pixels = np.random.default_rng(0).integers(0, 256, (rows, 3, side, side), dtype=np.uint8)
                writer.append(image=pixels, label=np.zeros(rows, np.int64))
            digest = ShardReader(inputs.prepare / part).digest
            TokenRecipe(features, features.batch_size, encoder.identity, digest).write(inputs.features / part)
        vae.save(inputs.texture_vae)
        semantic, channels = params.semantic_vae, encoder.channels
        compressors = SemanticCompressors(
            SemanticVAE(channels, semantic.channels, semantic.width, semantic.depth, semantic.heads),
            PCA(torch.zeros(channels), torch.eye(channels)[: semantic.pca_channels]),
            ChannelStatistics(torch.zeros(channels), torch.ones(channels)),
        )
        compressors.save(inputs.semantic_vae, semantic, encoder.identity)
        return cls(params.encode, encoder, inputs)


def embedded() -> Laboratory:
    """The embedded experiment: EfficientNet-Lite0 and the VAEs that it trains."""
    params = emoji()
    vae = cast(TrainedVAEParams, params.texture_vae)
    shape = TextureVAEShape(vae.channels, vae.downsampling, vae.width, vae.depth)
    return Laboratory.lay_out(params, params.features, TextureVAE(shape), images=512)


def imagenet() -> Laboratory:
    """DINOv2-B with registers, SD-VAE f16d32 and the paper's Semantic VAE, in float32."""
    params = load_preset("imagenet256-xl-80ep", ROOT / "presets").check()
    torch.save(timm.create_model(params.features.encoder, img_size=params.features.input_size).state_dict(), "encoder.pth")
    torch.save(LatentDiffusionVAE(128, (1, 1, 2, 2, 4), (False,) * 4 + (True,), z=32).state_dict(), "vae.ckpt")
    vae = LDMVAEParams.model_validate(params.texture_vae.model_dump() | {"weights": "vae.ckpt"})
    features = params.features.model_copy(update={"weights": "encoder.pth", "precision": "float32"})
    params = params.model_copy(update={"encode": params.encode.model_copy(update={"batch_size": 2})})
    return Laboratory.lay_out(params, features, read_published_vae(vae), images=4)


def networks_alone(laboratory: Laboratory, sources: Sources) -> Callable[[], None]:
    """Return the same forward passes, without reading, posterior samples, PCA, statistics and writing."""
    images = torch.from_numpy(sources.images["train"]["image"][:])
    encoder, vae, compressors = laboratory.encoder, sources.encoder.vae, sources.encoder.compressors

    @torch.no_grad()
    def run() -> None:
        for batch in images.split(laboratory.params.batch_size):
            both = torch.stack([batch, batch.flip(-1)], dim=1).flatten(0, 1)
            for view in both.split(len(batch)):
                compressors.vae.encode(encoder.tokens(view))
            vae.encode(both.float() / 127.5 - 1)

    return run


@pytest.mark.parametrize("lay_out", [embedded, imagenet])
def test_extraction_against_its_networks(
    benchmark: BenchmarkFixture,
    per_second: Callable[[int], None],
    remark: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lay_out: Callable[[], Laboratory],
) -> None:
    monkeypatch.chdir(tmp_path)
    laboratory, alone = lay_out(), Processes(0, 1)
    sources = Sources.open(laboratory.params, laboratory.inputs, alone)
    networks, seconds = networks_alone(laboratory, sources), []

    def extract() -> None:
        sources.extractions(laboratory.params, Path("out"))["train"].run(alone)

    def between_rounds() -> None:
        shutil.rmtree("out", ignore_errors=True)
        start = time.perf_counter()
        networks()
        seconds.append(time.perf_counter() - start)

    benchmark.pedantic(extract, setup=between_rounds, rounds=3, warmup_rounds=1)
    count = len(sources.images["train"])
    per_second(count)
    assert len(list(Path("out").rglob("manifest.json"))) == 1
    if benchmark.stats is not None:
        remark(f"in {benchmark.stats.stats.median / median(seconds[1:]):.3f} of the networks' own time")
