"""What each way to have REPA's targets costs on disk and in time: tokens stored, computed again in every step, or decoded.

The committed experiment's encoder, networks and shapes; random images and a Semantic VAE that hardly trained cost what real
ones do.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from emoji import emoji
from prepared_images import prepare_images
from pytest_benchmark.fixture import BenchmarkFixture

from sfd_core.experiment.params import VariantParams
from sfd_core.latents.composite import Composite
from sfd_core.models.denoisers.factory import build_denoiser
from sfd_core.models.denoisers.lightningdit import LightningDiT
from sfd_core.models.vaes.texture_vae import TextureVAE, TextureVAEShape
from sfd_core.stages.encode import EncodeInputs, encode
from sfd_core.stages.features import extract_features
from sfd_core.stages.semantic_vae import make_semantic_vae
from sfd_core.stages.train import TrainFolders, TrainInputs
from sfd_core.training.optim import WeightOptimizer
from sfd_core.training.tasks.denoising import FlowTask, LatentBatches

pytestmark = [pytest.mark.bench, pytest.mark.timeout(900)]

PARAMS = emoji()
IMAGES = {"train": 2 * PARAMS.train.optimisation.batch_size, "held_out": 8}
WAYS = {"stored": ("encoder", True), "computed": ("encoder", False), "semantic": ("semantic", False)}
"""Name -> `repa.targets` and `features.store`."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of all stages before training, tokens stored and not."""
    path = tmp_path_factory.mktemp("stages")
    prepare_images(path, IMAGES, PARAMS.prepare.resolution)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        for store in (True, False):
            params = PARAMS.features.model_copy(update={"store": store})
            extract_features(params, path / "prepare", path / f"features-{store}")
        few = PARAMS.semantic_vae.optimisation.model_copy(update={"steps": 1, "warmup_steps": 0, "decay_steps": 0})
        params = PARAMS.semantic_vae.model_copy(update={"optimisation": few})
        make_semantic_vae(params, path / "prepare", path / "features-True", path / "semantic_vae")
    (path / "texture_vae").mkdir()
    shape = PARAMS.texture_vae.model_dump(include={"channels", "downsampling", "width", "depth"})
    TextureVAE(TextureVAEShape(**shape)).save(path / "texture_vae")
    inputs = EncodeInputs(path / "prepare", path / "features-True", path / "texture_vae", path / "semantic_vae")
    encode(PARAMS.encode, inputs, path / "encode")
    return path


@pytest.mark.parametrize("way", WAYS)
def test_a_training_step(
    benchmark: BenchmarkFixture, per_second: Callable[[int], None], remark: Callable[[str], None], path: Path, way: str
) -> None:
    targets, store = WAYS[way]
    variant = _aligned(targets)
    features = path / f"features-{store}"
    inputs = TrainInputs.open(variant, TrainFolders(path / "encode", features, path / "prepare", path / "semantic_vae"))
    model = build_denoiser(variant, inputs.spec, num_classes=2).train()
    assert isinstance(model, LightningDiT)
    batches = LatentBatches(inputs.latents, Composite(inputs.statistics), variant, PARAMS.train, null=2)
    task = FlowTask(model, batches, variant, inputs.tokens)
    optimizer = WeightOptimizer(dict(model.named_parameters()), variant.learning_rate, PARAMS.train.optimisation)
    steps = iter(range(1_000))

    def step() -> float:
        optimizer.zero_grad()
        loss = task.loss(task.batch(next(steps), slice(0, PARAMS.train.optimisation.batch_size)))
        loss["loss"].backward()
        optimizer.step(torch.tensor(True))
        return float(loss["repa"].detach())

    benchmark.pedantic(step, rounds=8, warmup_rounds=2)
    assert 0 < step() < 10
    per_second(PARAMS.train.optimisation.batch_size)
    files = [] if way == "semantic" else [file for file in (features / "train").rglob("*") if file.is_file()]
    remark(f"{sum(file.stat().st_size for file in files) / IMAGES['train']:,.0f} bytes an image")


def _aligned(targets: str) -> VariantParams:
    repa = PARAMS.variants["repa"].repa.model_copy(update={"targets": targets})
    return PARAMS.variants["sfd"].model_copy(update={"repa": repa})
