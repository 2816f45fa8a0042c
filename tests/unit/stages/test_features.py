import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from prepared_images import prepare_images

from sfd_core.data.store.shards import ShardReader
from sfd_core.experiment.params import FeaturesParams
from sfd_core.host.errors import ConfigError, DataError, NumericsError, ResourceError
from sfd_core.latents.composite import load_statistics
from sfd_core.models.encoders import encoder as encoders
from sfd_core.models.encoders.encoder import efficientnet_lite, load_encoder
from sfd_core.stages.features import extract_features


def params(**changes: object) -> FeaturesParams:
    values = {
        "encoder": "tf_efficientnet_lite0", "weights": "package", "input_size": 64, "grid": 4,
        "precision": "float32", "store": True, "batch_size": 3,
    }  # fmt: skip
    return FeaturesParams.model_validate(values | changes)


pytestmark = pytest.mark.usefixtures("in_an_empty_project")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    prepare_images(tmp_path, {"train": 5, "held_out": 2}, side=16)
    return tmp_path / "prepare"


def test_tokens_are_the_encoders_for_image_and_mirror_image(images: Path, tmp_path: Path) -> None:
    extract_features(params(), images, tmp_path / "features")
    encoder = load_encoder(params())
    for part in ("train", "held_out"):
        pixels = torch.from_numpy(ShardReader(images / part)["image"].take(range(len(ShardReader(images / part)))))
        shard = ShardReader(tmp_path / "features" / part)
        tokens = torch.from_numpy(np.array(shard["tokens"].array)).float()
        assert tokens.shape == (len(pixels), 2, 112, 4, 4)
        for column, view in enumerate((pixels, pixels.flip(-1))):
            torch.testing.assert_close(tokens[:, column], encoder.tokens(view), rtol=2e-3, atol=2e-3)
        assert shard.meta == {"encoder": encoder.identity, "prepare": ShardReader(images / part).digest}
        shard.require_finite("tokens")


def test_a_constant_channel_of_the_encoder_has_deviation_1(images: Path, tmp_path: Path) -> None:
    model = efficientnet_lite("tf_efficientnet_lite0")
    with torch.no_grad():
        for block in model.blocks[4]:
            block.bn3.weight[7] = block.bn3.bias[7] = 0.0
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    extract_features(params(weights=str(tmp_path / "weights.pth")), images, tmp_path / "features")
    statistics = load_statistics(tmp_path / "features" / "statistics.safetensors")["token"]
    assert (statistics.mean[7], statistics.std[7]) == (0, 1)
    tokens = ShardReader(tmp_path / "features" / "train")["tokens"].array.astype(np.float64)
    others = [channel for channel in range(112) if channel != 7]
    np.testing.assert_allclose(statistics.std[others], tokens.std(axis=(0, 1, 3, 4))[others], rtol=1e-6)


def test_the_batch_size_does_not_matter(images: Path, tmp_path: Path) -> None:
    for size in (1, 5):
        extract_features(params(batch_size=size), images, tmp_path / str(size))
    one, five = (ShardReader(tmp_path / name / "train")["tokens"].array.astype(np.float32) for name in ("1", "5"))
    np.testing.assert_allclose(one, five, rtol=2e-3, atol=2e-3)


def test_tokens_beyond_float16_are_an_error_and_nothing_is_written(images: Path, tmp_path: Path) -> None:
    model = efficientnet_lite("tf_efficientnet_lite0")
    with torch.no_grad():
        model.blocks[4][-1].bn3.bias.fill_(1e6)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(NumericsError, match=r"tokens of train images reach 1e\+06, too large for float16"):
        extract_features(params(weights=str(tmp_path / "weights.pth")), images, tmp_path / "out" / "features")
    assert not (tmp_path / "out").exists()


def test_images_that_changed_since_prepare_are_refused(images: Path, tmp_path: Path) -> None:
    file = images / "held_out" / "image-00000.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"\x00")
    with pytest.raises(DataError, match=r"held_out/image-00000\.npy has sha256"):
        extract_features(params(), images, tmp_path / "out" / "features")
    assert not (tmp_path / "out").exists()


def test_missing_images_say_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train/manifest\.json does not exist; run the stage"):
        extract_features(params(), tmp_path / "nowhere", tmp_path / "out" / "features")
    assert not (tmp_path / "out").exists()


def test_a_grid_that_does_not_fit_is_told_before_any_work(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no 5x5 grid at features\.input_size 64"):
        extract_features(params(grid=5), images, tmp_path / "out" / "features")
    assert not (tmp_path / "out").exists()


def test_a_missing_package_of_weights_is_told(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(encoders.PACKAGED, "tf_efficientnet_lite0", ("no_such_package_of_weights", "File"))
    with pytest.raises(ResourceError, match="package no-such-package-of-weights, which contains the weights"):
        extract_features(params(), images, tmp_path / "out" / "features")
    assert not (tmp_path / "out").exists()


def test_a_nearly_full_disk_is_told_before_any_work(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=9000))
    with pytest.raises(ResourceError, match="stage features needs"):
        extract_features(params(), images, tmp_path / "out" / "features")
    assert not (tmp_path / "out").exists()
