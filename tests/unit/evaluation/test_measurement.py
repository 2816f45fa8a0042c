"""Drawing and measuring batch by batch: the same numbers however it is cut, interrupted or shared between processes."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from denoisers import artifact, texture_vae, trained_on, variant
from measured_together import LABELS, SAMPLER

from sfd_core.data.store.shard_writer import ShardWriter
from sfd_core.data.store.shards import FieldSpec, ShardReader
from sfd_core.evaluation import measurement as measurement_module
from sfd_core.evaluation.measurement import Measured, Order, class_balanced_labels, measure, oracle_order, oracle_sampler
from sfd_core.evaluation.rerun import Measurement, Recorded, read_recorded, recipe
from sfd_core.host.errors import DataError, IdentityError
from sfd_core.host.paths import file_digest, write_json
from sfd_core.host.processes import ALONE
from sfd_core.sampling.artifact import load_denoiser
from sfd_core.sampling.pipeline import Pipeline, Samples

ANY = {"kind": "independent", "absent": 0.05}
CASCADE = {"kind": "own", "semantic_share": 0.3, "handover_noise": 0.25, "absent": 0.05}
FIRST_IN_TWO_STEPS = [[0.0, 0.0], [0.0, 0.5], [0.0, 1.0], [1.0, 1.0]]


def measured(measuring: Measurement, folder: Path, **changes: Any) -> Measured:
    order = Order(**({"labels": LABELS, "sampler": SAMPLER} | changes))
    result = measure(measuring.pipeline, measuring.evaluator, order, folder)
    assert result is not None
    return result


def test_features_are_those_of_the_images_drawn_at_once(measuring: Measurement, tmp_path: Path) -> None:
    result = measured(measuring, tmp_path, shown=4, keep_images=True)
    images = measuring.pipeline(LABELS, sampler=SAMPLER).images
    torch.testing.assert_close(torch.cat(list(result.images())), images, atol=1, rtol=0)
    torch.testing.assert_close(
        result.features["efficientnet_lite0/features"],
        measuring.evaluator.features(images)["efficientnet_lite0/features"],
        atol=1e-3,
        rtol=1e-3,
    )
    assert torch.equal(result.shown, torch.cat(list(result.images()))[:4])
    assert result.labels.tolist() == LABELS
    assert result.evaluations == 4


def test_images_that_nobody_asked_for_are_not_kept(measuring: Measurement, tmp_path: Path) -> None:
    result = measured(measuring, tmp_path, shown=4)
    assert len(result.shown) == 4
    assert [batch.kept for batch in result.batches] == [3, 1, 0, 0]
    assert sum(len(images) for images in result.images()) == 4


def test_a_run_that_was_broken_off_continues_with_the_same_features(
    measuring: Measurement, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measured(measuring, tmp_path / "whole")
    draw, order = measuring.pipeline.draw, Order(LABELS, SAMPLER)

    def breaks_off(first: int, *arguments: Any) -> Samples:
        if first == 2 * SAMPLER.batch_size:
            raise KeyboardInterrupt
        return draw(first, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(measuring.pipeline, "draw", breaks_off)
        with pytest.raises(KeyboardInterrupt):
            measure(measuring.pipeline, measuring.evaluator, order, tmp_path / "broken")
    kept = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "broken").glob("*.safetensors")}
    continued = measured(measuring, tmp_path / "broken")
    assert len(kept) == 2
    assert {name: (tmp_path / "broken" / name).stat().st_mtime_ns for name in kept} == kept
    assert all(torch.equal(continued.features[name], values) for name, values in whole.features.items())


def test_what_another_guide_at_the_same_path_drew_is_drawn_again(measuring: Measurement, studied: Path, tmp_path: Path) -> None:
    guide, scaled = tmp_path / "guide", SAMPLER.texture.model_copy(update={"scale": 2.0})
    changes = {"guidance": "autoguidance", "guide": str(guide), "texture": scaled, "semantic": scaled}
    order, drawn = Order(LABELS, SAMPLER.model_copy(update=changes)), []
    for seed in (0, 1):
        shutil.rmtree(guide, ignore_errors=True)
        artifact(guide, studied / "vae", variant(), seed)
        pipeline = Pipeline.from_artifact(studied / "train", studied / "vae", guide=guide)
        result = measure(pipeline, measuring.evaluator, order, tmp_path / "work")
        assert result is not None
        drawn.append(result.features["efficientnet_lite0/features"])
    assert not torch.equal(*drawn)


def test_more_images_of_the_same_seed_continue_those_that_are_there(measuring: Measurement, tmp_path: Path) -> None:
    measured(measuring, tmp_path, labels=LABELS[:6])
    before = {file.name for file in tmp_path.glob("*.safetensors")}
    measured(measuring, tmp_path)
    assert before < {file.name for file in tmp_path.glob("*.safetensors")}


def flip_last_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])


@pytest.mark.parametrize("damage", [flip_last_byte, cut_short])
def test_a_damaged_batch_on_disk_is_named_and_drawn_again(
    damage: Callable[[Path], None], measuring: Measurement, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = measured(measuring, tmp_path)
    damaged, *others = [batch.file for batch in whole.batches]
    kept = {file.name: file.stat().st_mtime_ns for file in others}
    damage(damaged)
    again = measured(measuring, tmp_path)
    assert f"warning: {damaged}" in capsys.readouterr().err
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in kept} == kept
    assert all(torch.equal(again.features[name], values) for name, values in whole.features.items())


def test_a_batch_that_is_damaged_after_it_was_drawn_is_named(measuring: Measurement, tmp_path: Path) -> None:
    result = measured(measuring, tmp_path, keep_images=True)
    flip_last_byte(result.batches[1].file)
    with pytest.raises(DataError, match=result.batches[1].file.name):
        list(result.images())


def test_what_is_forgotten_is_gone(measuring: Measurement, tmp_path: Path) -> None:
    measured(measuring, tmp_path / "batches").forget()
    assert not (tmp_path / "batches").exists()


def recorded(measuring: Measurement, file: Path) -> Recorded:
    result = measuring.run(Order(LABELS, SAMPLER), "samples")
    assert result is not None
    write_json(file, {"final": result[0]})
    result[1].forget()
    return read_recorded(file)["final"]


def test_a_recorded_measurement_gives_the_same_numbers_again(measuring: Measurement, tmp_path: Path) -> None:
    old = recorded(measuring, tmp_path / "numbers.json")
    old.require_same(measuring)
    order = old.order(measuring.pipeline, tmp_path)
    assert (list(order.labels), order.sampler) == (LABELS, SAMPLER)
    result = measuring.run(order, lambda batches, _: batches)
    assert result is not None
    assert {name: asdict(number) for name, number in result[0].items()} == old.numbers


def test_another_path_of_the_same_weights_is_another_measurement(measuring: Measurement, studied: Path, tmp_path: Path) -> None:
    old = recorded(measuring, tmp_path / "numbers.json")
    path = artifact(tmp_path / "other", studied / "vae", variant(delta_t=-0.9))
    other = Measurement(path, Pipeline.from_artifact(path, studied / "vae"), measuring.evaluator, ALONE)
    assert other.weights == measuring.weights
    assert other.key(SAMPLER, 10) != measuring.key(SAMPLER, 10)
    with pytest.raises(IdentityError, match=r"measured with path \[\[0\.0, 0\.0\], \[0\.0, 0\.3\]"):
        old.require_same(other)


def test_other_weights_extractors_or_references_are_refused(measuring: Measurement, studied: Path, tmp_path: Path) -> None:
    old = recorded(measuring, tmp_path / "numbers.json")
    other = artifact(tmp_path / "other", studied / "vae", variant(), seed=5)
    trained_anew = Measurement(other, Pipeline.from_artifact(other, studied / "vae"), measuring.evaluator, ALONE)
    with pytest.raises(IdentityError, match="measured with weights"):
        old.require_same(trained_anew)
    values = json.loads((tmp_path / "numbers.json").read_text())
    for number in values["final"].values():
        number["protocol"]["reference_digest"] = "0" * 64
    (tmp_path / "numbers.json").write_text(json.dumps(values))
    with pytest.raises(IdentityError, match="measured with reference_digest"):
        read_recorded(tmp_path / "numbers.json")["final"].require_same(measuring)


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"final": {}}', '{"final": {"fid": 3.0}}', '{"final": {"fid": {"value": 1, "protocol": {}}}}']
)
def test_a_file_without_recipes_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "numbers.json").write_text(content)
    with pytest.raises(DataError, match=r"numbers\.json holds no numbers that can be measured again"):
        read_recorded(tmp_path / "numbers.json")


def test_every_prefix_of_balanced_labels_is_balanced() -> None:
    labels = class_balanced_labels(1003, 10)
    for count in (1, 9, 10, 500, 1003):
        counts = np.bincount(labels[:count], minlength=10)
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize(
    ("classes", "labels", "rows"), [([], [0] * 4, [0, 3, 6, 9]), (["a", "b", "c"], [2, 0, 2, 1, 2], [8, 0, 9, 4, 10])]
)
def test_an_oracle_takes_semantics_of_all_styles_or_of_the_classes_it_draws(
    classes: list[str], labels: list[int], rows: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ShardWriter(tmp_path / "latents", {"label": FieldSpec("int64", ())}, {}) as writer:
        writer.append(label=np.repeat(np.arange(3), 4))
    monkeypatch.setattr(measurement_module, "semantic_latents", lambda _denoiser, _latents, chosen: torch.from_numpy(chosen))
    denoiser = load_denoiser(artifact(tmp_path / "train", texture_vae(tmp_path / "vae"), variant(), classes=classes))
    order = oracle_order(denoiser, labels, SAMPLER, ShardReader(tmp_path / "latents"))
    assert order.semantics is not None
    assert order.semantics(slice(None)).tolist() == rows
    more = oracle_order(denoiser, labels * 2, SAMPLER, ShardReader(tmp_path / "latents"))
    assert more.semantics_key != order.semantics_key


@pytest.mark.parametrize(
    ("changes", "chosen", "order"),
    [
        ({}, {}, None),
        ({"delta_t": 0.0}, {}, None),
        ({"delta_t": -1.0}, {}, None),
        ({"semantic": "none", "delta_t": 0.0}, {}, None),
        ({"delta_t": 1.0}, {}, (None, None)),
        ({"delta_t": 1.0, "times": CASCADE}, {}, (None, None)),
        ({"delta_t": 0.0, "path": FIRST_IN_TWO_STEPS}, {}, (None, None)),
        ({"times": ANY}, {}, (1.0, None)),
        ({"times": ANY}, {"delta_t": 0.5}, (1.0, None)),
        ({"times": ANY}, {"path": FIRST_IN_TWO_STEPS}, (1.0, None)),
    ],
)
def test_an_oracle_is_drawn_only_where_semantics_are_finished_first(
    changes: dict[str, Any], chosen: dict[str, Any], order: tuple[float | None, Any] | None
) -> None:
    found = oracle_sampler(variant(**changes), SAMPLER.model_copy(update=chosen))
    assert (None if found is None else (found.delta_t, found.path)) == order


def test_a_recorded_oracle_is_not_drawn_with_latents_of_another_training(
    measuring: Measurement, studied: Path, tmp_path: Path
) -> None:
    train = shutil.copytree(studied / "train", tmp_path / "train")
    trained_on(train, tmp_path / "encode")
    values = np.zeros((2, 2, 2, 4, 4), dtype=np.float32)
    specs = {"z_sem": FieldSpec("float32", values.shape[1:]), "label": FieldSpec("int64", ())}
    with ShardWriter(tmp_path / "encode" / "train", specs, {}) as writer:
        writer.append(z_sem=values, label=np.arange(2))
    pipeline = Pipeline.from_artifact(train, studied / "vae")
    oracle = Recorded({}, recipe(train, pipeline, SAMPLER, oracle=True), SAMPLER, samples=2)
    assert oracle.order(pipeline, tmp_path / "encode").oracle
    with pytest.raises(IdentityError, match=r"the oracle with the latents in .*: .*different latents .statistics"):
        oracle.order(measuring.pipeline, tmp_path / "encode")


def test_a_recipe_names_the_weights_of_the_guide(tmp_path: Path) -> None:
    vae = texture_vae(tmp_path / "vae")
    main, guide = (artifact(tmp_path / name, vae, variant(), seed=seed) for seed, name in enumerate(("main", "guide")))
    pipeline = Pipeline.from_artifact(main, vae, guide=guide)
    guided = SAMPLER.model_copy(update={"guidance": "autoguidance", "guide": str(guide)})
    weights = file_digest(guide / "snapshots" / "step-00000007.safetensors")
    assert recipe(main, pipeline, guided)["guide_weights"] == weights != recipe(main, pipeline, guided)["weights"]
    assert recipe(main, pipeline, SAMPLER)["guide_weights"] is None


def test_every_batch_gets_the_semantics_of_its_own_images(measuring: Measurement, tmp_path: Path) -> None:
    asked: list[slice] = []

    def semantics(rows: slice) -> torch.Tensor:
        asked.append(rows)
        return torch.zeros(rows.stop - rows.start, 2, 4, 4)

    sampler = SAMPLER.model_copy(update={"delta_t": 1.0})
    measured(measuring, tmp_path, sampler=sampler, semantics=semantics, semantics_key="zeros")
    assert asked == [slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 10)]
