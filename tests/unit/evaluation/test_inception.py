from pathlib import Path

import numpy as np
import pytest
import torch
from evaluators import patterns, train_shard
from published_files import inception_state
from safetensors.torch import save_file
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from sfd_core.evaluation import inception
from sfd_core.evaluation.adm import AdmReference
from sfd_core.evaluation.evaluator import Evaluator, load_extractor
from sfd_core.evaluation.reference import write_reference
from sfd_core.experiment.params import ReferenceParams
from sfd_core.host.errors import DataError, ResourceError


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Random weights of the standard file's names and shapes."""
    return inception_state()


@pytest.fixture(scope="module")
def weights(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(state, path)
    return path


def test_layers_are_torch_fidelitys_and_the_spatial_feature_has_2023_values(weights: Path) -> None:
    extractor = load_extractor("inception", str(weights)).cpu()
    images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features, logits, spatial = extractor.extract(images, 2).values()
    theirs = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], str(weights))(images)
    torch.testing.assert_close((features, logits), theirs)
    assert features.shape == (2, 2048)
    assert logits.shape == (2, 1008)
    assert spatial.shape == (2, 2023)
    assert spatial.min() >= 0
    assert not torch.equal(spatial[0], spatial[1])


def test_spatial_values_are_in_the_order_of_adms_files(weights: Path) -> None:
    """Row, column, channel of the convolution: what `mixed_6/conv[..., :7].reshape(n, -1)` is in TensorFlow."""
    images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    theirs = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(weights))
    convolutions: list[Tensor] = []
    theirs.Mixed_6d.branch1x1.register_forward_hook(lambda _module, _inputs, output: convolutions.append(output))
    theirs(images)
    by_place = np.stack([convolutions[0][:, channel].numpy() for channel in range(7)], axis=-1)
    spatial = load_extractor("inception", str(weights)).cpu().extract(images, 2)["spatial"]
    np.testing.assert_allclose(spatial.numpy(), by_place.reshape(2, -1), rtol=1e-5, atol=1e-6)
    assert spatial[0, 7] == pytest.approx(by_place[0, 0, 1, 0], rel=1e-5)


def test_other_than_the_standard_weights_are_no_fid(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    custom = load_extractor("inception", str(weights)).identity
    assert custom.name == "inception_custom"
    assert custom.key.startswith("inception_custom-")
    monkeypatch.setattr(inception, "STANDARD_DIGEST", custom.weights[:8])
    assert load_extractor("inception", str(weights)).identity.name == "inception"


def test_safetensors_are_read_too(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "inception.safetensors"
    save_file(state, path)
    extractor = load_extractor("inception", str(path))
    torch.testing.assert_close(extractor.network.fc.weight.cpu(), state["fc.weight"])


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def test_a_file_that_would_execute_code_is_refused_unexecuted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"fc.weight": Payload()}, tmp_path / "bad.pth")
    with pytest.raises(DataError, match=r"holds more than tensors and plain values .*6726825d"):
        load_extractor("inception", str(tmp_path / "bad.pth"))
    assert not (tmp_path / "executed").exists()


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(DataError, match="weights of another network") as raised:
        load_extractor("inception", str(tmp_path / "other.pth"))
    assert len(str(raised.value).splitlines()) == 1
    assert len(str(raised.value)) < 800


def test_a_missing_file_says_what_to_fetch(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"fetch https://.*6726825d\.pth and name it in reference.inception_weights"):
        load_extractor("inception", str(tmp_path / "gone.pth"))


def test_without_network_the_error_says_where_to_put_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(inception, "WEIGHTS_URL", "http://127.0.0.1:9/weights.pth")
    monkeypatch.setattr(inception, "weights_folder", lambda: tmp_path)
    with pytest.raises(ResourceError, match=f"put it at {tmp_path}/weights-inception-2015-12-05-6726825d.pth"):
        load_extractor("inception")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_adm_reference_of_true_shapes_is_at_no_distance_from_its_own_images(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inception, "STANDARD_DIGEST", load_extractor("inception", str(weights)).identity.weights[:8])
    extractor = load_extractor("inception", str(weights))
    images = patterns(8, seed=4, size=32)
    layers = extractor.extract(images, 4)
    arrays = {"arr_0": images.permute(0, 2, 3, 1).numpy()}
    for layer, suffix in (("features", ""), ("spatial", "_s")):
        values = layers[layer].double().numpy()
        arrays |= {f"mu{suffix}": values.mean(0), f"sigma{suffix}": np.cov(values, rowvar=False)}
    np.savez(tmp_path / "VIRTUAL.npz", **arrays)
    adm, train = AdmReference.open(tmp_path / "VIRTUAL.npz", 32), train_shard(tmp_path / "train", count=4, size=32)
    write_reference(tmp_path / "reference" / "inception", extractor, train, 4, lambda blocks, _: blocks, adm)
    params = ReferenceParams(
        extractors=["inception"], inception_weights=str(weights), adm_npz=str(tmp_path / "VIRTUAL.npz"), batch_size=4
    )
    evaluator = Evaluator.load(tmp_path / "reference", params, 4)
    own, other = (evaluator.score(evaluator.features(drawn)) for drawn in (images, patterns(8, seed=5, size=32)))
    scale = float(evaluator.references["inception"].frechet.factor.square().sum())
    assert set(own) == {"fid", "sfid", "is", "kid_inception", "precision_inception", "recall_inception"}
    assert abs(own["fid"]) < 1e-5 * scale < abs(other["fid"])
    assert own["precision_inception"] == own["recall_inception"] == 1.0


def test_the_standard_file_is_that_of_published_numbers() -> None:
    assert (inception.WEIGHTS_FILE, inception.STANDARD_DIGEST) == ("weights-inception-2015-12-05-6726825d.pth", "6726825d")


def test_weights_that_were_downloaded_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inception, "weights_folder", lambda: tmp_path)
    (tmp_path / inception.WEIGHTS_FILE).touch()
    assert inception._fetch_weights() == tmp_path / inception.WEIGHTS_FILE
