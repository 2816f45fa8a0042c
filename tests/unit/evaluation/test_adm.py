"""ADM's reference files: read as they are, checked before any compute, and used by the extractor Inception alone."""

import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluators import patterns, train_shard
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from sfd_core.evaluation import adm
from sfd_core.evaluation.adm import AdmReference
from sfd_core.evaluation.evaluator import EXTRACTORS, Drawn, Evaluator
from sfd_core.evaluation.extractors import Extractor, ExtractorIdentity
from sfd_core.evaluation.reference import write_reference
from sfd_core.experiment.params import ReferenceParams
from sfd_core.host.errors import ConfigError, DataError, IdentityError

POOLED, SPATIAL, CLASSES = 6, 5, 10
DRAWN = Drawn(images="samples", labels="class-balanced", seed=0, sampler="none", evaluations=None, guidance="none", recipe=None)
SIDE = 16


class SmallInception(Extractor):
    """The layers and the name of Inception, small: random projections of the mean colours of a 4x4 grid."""

    layers = ("features", "logits", "spatial")

    def __init__(self, _weights: str | None = None) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(0)
        widths = {"features": POOLED, "logits": CLASSES, "spatial": SPATIAL}
        for layer, width in widths.items():
            weight = torch.randn(48, width, generator=source)
            self.register_parameter(layer, torch.nn.Parameter(weight, requires_grad=False))
        self.identity = ExtractorIdentity("inception", "0" * 64, 4, "mean colours")

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        colours = torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 4).flatten(1)
        return {layer: colours @ self.get_parameter(layer) for layer in self.layers}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXTRACTORS, "inception", SmallInception)
    shapes = {"mu": (POOLED,), "sigma": (POOLED,) * 2, "mu_s": (SPATIAL,), "sigma_s": (SPATIAL,) * 2}
    monkeypatch.setattr(adm, "SHAPES", shapes)


def contents() -> dict[str, np.ndarray]:
    """What ADM's file holds, computed by NumPy from features of images, half of which are in the file."""
    images = patterns(60, seed=3, size=SIDE)
    layers = SmallInception()(images)
    arrays: dict[str, np.ndarray] = {"arr_0": images[:30].permute(0, 2, 3, 1).numpy()}
    for layer, suffix in (("features", ""), ("spatial", "_s")):
        values = layers[layer].double().numpy()
        arrays[f"mu{suffix}"], arrays[f"sigma{suffix}"] = values.mean(0), np.cov(values, rowvar=False)
    return arrays


@pytest.fixture
def file(tmp_path: Path) -> Path:
    np.savez(tmp_path / "VIRTUAL_small.npz", **contents())
    return tmp_path / "VIRTUAL_small.npz"


def evaluator_with(file: Path | None, folder: Path) -> Evaluator:
    params = ReferenceParams(
        extractors=["inception"], inception_weights=None, adm_npz=None if file is None else str(file), batch_size=8
    )
    train = train_shard(folder / "train", count=40)
    reference = None if file is None else AdmReference.open(file, SIDE)
    network = SmallInception()
    write_reference(folder / "reference" / "inception", network, train, 8, lambda blocks, _: blocks, reference)
    return Evaluator.load(folder / "reference", params, 10, train.digest)


def frechet(x: torch.Tensor, mu: np.ndarray, sigma: np.ndarray) -> float:
    statistics = fid_features_to_statistics(x), {"mu": mu, "sigma": sigma}
    return float(fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID])


def test_numbers_are_those_of_the_file_s_statistics_and_images(file: Path, tmp_path: Path) -> None:
    evaluator, arrays = evaluator_with(file, tmp_path), contents()
    drawn = patterns(20, seed=9)
    features = evaluator.features(drawn)
    values = evaluator.score(features)
    pooled, spatial = (features[f"inception/{layer}"].double() for layer in ("features", "spatial"))
    real = evaluator.features(torch.from_numpy(arrays["arr_0"]).permute(0, 3, 1, 2))["inception/features"].double()
    covered = prc_features_to_metric(pooled, real, prc_neighborhood=3, prc_batch_size=100, save_cpu_ram=False, verbose=False)
    assert values["fid"] == pytest.approx(frechet(pooled, arrays["mu"], arrays["sigma"]), rel=1e-5)
    assert values["sfid"] == pytest.approx(frechet(spatial, arrays["mu_s"], arrays["sigma_s"]), rel=1e-5)
    assert values["precision_inception"] == pytest.approx(covered["precision"])
    assert values["recall_inception"] == pytest.approx(covered["recall"])
    assert values["fid"] != pytest.approx(evaluator_with(None, tmp_path / "own").score(features)["fid"], rel=1e-3)


def test_precision_does_not_depend_on_the_order_but_on_the_reference_images(file: Path, tmp_path: Path) -> None:
    drawn = patterns(25, seed=9)
    evaluator = evaluator_with(file, tmp_path)
    plain = evaluator.score(evaluator.features(drawn))
    turned = evaluator.score(evaluator.features(drawn.flip(0)))
    assert turned["precision_inception"] == plain["precision_inception"]
    np.savez(tmp_path / "fewer.npz", **(contents() | {"arr_0": contents()["arr_0"][:8]}))
    fewer = evaluator_with(tmp_path / "fewer.npz", tmp_path / "other").score(evaluator.features(drawn))
    assert fewer["fid"] == pytest.approx(plain["fid"]), "statistics are the file's, whatever its images"
    assert fewer["precision_inception"] != plain["precision_inception"]


def test_the_protocol_names_the_file_and_its_hash(file: Path, tmp_path: Path) -> None:
    evaluator = evaluator_with(file, tmp_path)
    protocol = evaluator.numbers(evaluator.features(patterns(20)), DRAWN)["precision_inception"].protocol
    assert protocol["reference_digest"] == AdmReference.open(file, SIDE).identity().sha256
    assert "VIRTUAL_small.npz" in protocol["reference"]
    assert protocol["reference_images"] == 30
    assert "30 reference images" in protocol["settings"]


def test_nearest_neighbours_are_still_training_images(file: Path, tmp_path: Path) -> None:
    evaluator = evaluator_with(file, tmp_path)
    assert evaluator.nearest(evaluator.features(patterns(40)[[5, 9]].flip(-1)), k=1).rows.tolist() == [[5], [9]]


def test_images_are_read_in_blocks_of_any_size(file: Path) -> None:
    reference, images = AdmReference.open(file, SIDE), contents()["arr_0"].transpose(0, 3, 1, 2)
    for rows in (1, 7, 100):
        np.testing.assert_array_equal(np.concatenate(list(reference.file.blocks(rows))), images)


@pytest.mark.parametrize("name", ["mu", "sigma", "mu_s", "sigma_s", "arr_0"])
def test_a_missing_array_is_named(name: str, tmp_path: Path) -> None:
    arrays = contents()
    del arrays[name]
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError, match=rf"bad\.npz lacks {name}; it holds "):
        AdmReference.open(tmp_path / "bad.npz", SIDE)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mu": np.zeros(7)}, r"mu is float64 \(7,\) instead of floating point \(6,\)"),
        ({"sigma": np.zeros((POOLED, POOLED), int)}, "sigma is int64"),
        ({"arr_0": np.zeros((3, SIDE, SIDE, 3))}, "arr_0 is float64"),
        ({"arr_0": np.zeros((3, 3, SIDE, SIDE), np.uint8)}, "instead of uint8"),
        ({"arr_0": np.asfortranarray(np.zeros((3, SIDE, SIDE, 3), np.uint8))}, "its images are in Fortran order"),
    ],
)
def test_a_wrong_shape_or_type_is_named(change: dict[str, np.ndarray], said: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", **(contents() | change))
    with pytest.raises(DataError, match=said):
        AdmReference.open(tmp_path / "bad.npz", SIDE)


def test_another_resolution_is_refused(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"images of 16x16 pixels, but prepare\.resolution is 256"):
        AdmReference.open(file, 256)


def test_a_missing_or_damaged_file_is_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        AdmReference.open(tmp_path / "gone.npz", SIDE)
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(DataError, match="no readable"):
        AdmReference.open(tmp_path / "text.npz", SIDE)
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(io.BytesIO(bytes(content))) as archive:
        member = archive.getinfo("arr_0.npy")
    content[member.header_offset + 2000] ^= 0xFF
    file.write_bytes(bytes(content))
    with pytest.raises(DataError, match="arr_0 is damaged"):
        list(AdmReference.open(file, SIDE).file.blocks(8))


@pytest.mark.parametrize(("name", "said"), [("sigma", "not symmetric"), ("mu_s", "NaN")])
def test_statistics_that_are_none_are_refused(name: str, said: str, tmp_path: Path) -> None:
    arrays = contents()
    arrays[name].flat[1] = 1e3 if name == "sigma" else np.nan
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError, match=f"{name}.*{said}"):
        AdmReference.open(tmp_path / "bad.npz", SIDE).statistics()


def test_statistics_of_the_standard_network_fit_no_other(file: Path, tmp_path: Path) -> None:
    network = SmallInception()
    network.identity = ExtractorIdentity("inception_custom", "1" * 64, 4, "mean colours")
    with pytest.raises(IdentityError, match=r"set reference\.inception_weights to null"):
        write_reference(
            tmp_path / "r", network, train_shard(tmp_path / "train"), 8, lambda blocks, _: blocks, AdmReference.open(file, SIDE)
        )


def test_a_reference_made_with_another_file_is_refused(file: Path, tmp_path: Path) -> None:
    evaluator_with(file, tmp_path)
    for asked in (None, "elsewhere/other.npz"):
        params = ReferenceParams(extractors=["inception"], inception_weights=None, adm_npz=asked, batch_size=8)
        with pytest.raises(IdentityError, match=re.escape(f"but reference.adm_npz is {asked}")):
            Evaluator.load(tmp_path / "reference", params, 10)


def test_the_true_shapes_are_those_of_inception() -> None:
    assert (adm.POOLED, adm.SPATIAL) == (2048, 7 * 17 * 17)
