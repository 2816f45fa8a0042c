"""Stage `evaluate`: whatever the numbers of samples, it writes its files."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from denoisers import CLASSES, artifact, texture_vae, variant, write_latents
from emoji import emoji_values
from evaluators import patterns

from sfd_core.data.store.shard_writer import ShardWriter
from sfd_core.data.store.shards import FieldSpec, ShardReader
from sfd_core.evaluation.extractors import EfficientNetLite0
from sfd_core.evaluation.reference import write_reference
from sfd_core.evaluation.rerun import Measurement, read_recorded
from sfd_core.experiment.params import Params, parse_params
from sfd_core.host.processes import ALONE
from sfd_core.latents.composite import LatentStatistics
from sfd_core.models.vaes.loader import load_texture_vae
from sfd_core.sampling.artifact import DenoiserManifest, SnapshotRecord
from sfd_core.stages.evaluate import Evaluation

IMAGES = 12


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose variant `sfd` has two snapshots."""
    outputs = tmp_path_factory.mktemp("evaluated") / "outputs"
    fields = {"image": FieldSpec("uint8", (3, 16, 16)), "label": FieldSpec("int64", ())}
    with ShardWriter(outputs / "prepare" / "train", fields, {"classes": CLASSES}) as writer:
        writer.append(image=patterns(IMAGES).numpy(), label=np.arange(IMAGES) % len(CLASSES))
    write_reference(
        outputs / "reference" / "efficientnet_lite0", EfficientNetLite0(), ShardReader(outputs / "prepare" / "train"), 8,
        lambda blocks, _: blocks,
    )  # fmt: skip
    vae = texture_vae(outputs / "texture_vae")
    trained = artifact(outputs / "train" / "sfd", vae, variant())
    statistics = LatentStatistics.load(trained / "statistics.safetensors")
    assert statistics.semantic is not None
    random, channels = np.random.default_rng(0), {"z_tex": 4, "z_sem": 2}
    latents = {name: random.normal(size=(IMAGES, 2, count, 4, 4)).astype(np.float32) for name, count in channels.items()}
    of_both = {"texture": statistics.texture, "vae": statistics.semantic}
    identity = write_latents(outputs / "encode", latents, of_both, load_texture_vae(vae)[1])
    shutil.copyfile(trained / "snapshots" / "step-00000007.safetensors", trained / "snapshots" / "step-00000003.safetensors")
    manifest = DenoiserManifest.read(trained)
    early = SnapshotRecord(3, 24, "snapshots/step-00000003.safetensors")
    replace(manifest, identity=identity, snapshots=[early, *manifest.snapshots]).write(trained)
    return outputs.parent


def params(oracle: bool = False) -> Params:
    values = emoji_values()
    values["reference"] |= {"extractors": ["efficientnet_lite0"], "batch_size": 8}
    values["evaluate"] |= {"snapshot_samples": 5, "final_samples": 9, "kid_subset_size": 5, "neighbours": 2, "oracle": oracle}
    values["evaluate"]["sampler"] |= {"evaluations": 4, "batch_size": 4}
    values["report"] |= {"grid_images": 8}
    return parse_params(values | {"active": ["sfd"]})


def test_samples_of_another_path_of_the_same_weights_are_not_gone_on_with(
    laid_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shutil.copytree(laid_out, tmp_path / "project"))
    before = Evaluation("sfd", params(), ALONE).batches
    trained = Path("outputs/train/sfd")
    replace(DenoiserManifest.read(trained), variant=variant(delta_t=-0.9)).write(trained)
    along_another = Evaluation("sfd", params(), ALONE).batches
    assert along_another != before
    for path in (trained / "model.json", Path("outputs/encode/identity.json")):
        path.write_text(path.read_text().replace(load_texture_vae(Path("outputs/texture_vae"))[1]["weights"], "0" * 64))
    assert Evaluation("sfd", params(), ALONE).batches != along_another


def test_grids_of_all_snapshots_have_one_size_however_few_samples_they_have(
    laid_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(laid_out)
    Evaluation("sfd", params(), ALONE).run(tmp_path / "out")
    with np.load(tmp_path / "out" / "samples.npz") as samples:
        assert samples["images"].shape == (2, 5, 3, 16, 16)
        assert samples["labels"].tolist() == [0, 1, 2, 0, 1]


def test_an_oracle_is_recorded_with_its_own_order_and_measured_again(
    laid_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shutil.copytree(laid_out, tmp_path / "project"))
    trained, asked = Path("outputs/train/sfd"), params(oracle=True)
    any_order = variant(times={"kind": "independent", "absent": 0.1})
    replace(DenoiserManifest.read(trained), variant=any_order).write(trained)
    Evaluation("sfd", asked, ALONE).run(Path("out"))
    recorded = read_recorded(Path("out/numbers.json"))
    assert {group: found.sampler.delta_t for group, found in recorded.items()} == {"final": None, "oracle": 1.0}
    oracle, measurement = recorded["oracle"], Measurement.load(asked, trained, None, recorded["oracle"].sampler, ALONE)
    oracle.require_same(measurement)
    again = measurement.run(oracle.order(measurement.pipeline, Path("outputs/encode")), "oracle")
    assert again is not None
    assert {name: number.value for name, number in again[0].items()} == {
        name: number["value"] for name, number in oracle.numbers.items()
    }
