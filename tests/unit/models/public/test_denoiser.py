"""Files of the published formats, made here with small networks of the same names and shapes."""

import argparse
import random
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sfd_core.experiment.sizes import ModelSize
from sfd_core.host.errors import DataError
from sfd_core.models.denoisers.dit import DiT
from sfd_core.models.denoisers.lightningdit import LightningDiT, RepaHead
from sfd_core.models.public.denoiser import lightningdit_from, without_projector
from sfd_core.models.public.semantic_vae import semantic_vae_from
from sfd_core.models.public.weights import load_strictly, read_public_checkpoint
from sfd_core.models.vaes.semantic_vae import SemanticVAE

SMALL = ModelSize(depth=2, width=32, heads=2)
REPA = RepaHead(block=2, width=16, target_channels=7)


def network(seed: int = 0, embedders: int = 2, repa: RepaHead | None = None, patch: int = 1) -> LightningDiT:
    """A network whose weights are all random, so that a copy that misses one is seen."""
    model = LightningDiT(SMALL, in_channels=6, grid=4, patch=patch, num_classes=5, embedders=embedders, repa=repa)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def assert_equal(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return OrderedDict((prefix + name, value) for name, value in state.items())


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
@pytest.mark.parametrize("embedders", [1, 2])
@pytest.mark.parametrize("keys", [["ema"], ["model"], ["model", "ema"], ["model", "ema", "opt", "args"]])
def test_torch_checkpoints_load_strictly(tmp_path: Path, keys: list[str], embedders: int, prefix: str) -> None:
    averaged, live = network(0, embedders).state_dict(), network(1, embedders).state_dict()
    optimiser = torch.optim.AdamW(network().parameters()).state_dict()
    args = argparse.Namespace(lr=1e-4, data="latents")
    content: dict[str, Any] = {
        "ema": prefixed(averaged, prefix),
        "model": prefixed(live, prefix),
        "opt": optimiser,
        "args": args,
    }
    torch.save({key: content[key] for key in keys}, tmp_path / "0400000.pt")
    model = network(2, embedders)
    load_strictly(model, read_public_checkpoint(tmp_path / "0400000.pt"), "give other weights")
    assert_equal(model.state_dict(), averaged if "ema" in keys else live)


@pytest.mark.parametrize("zipped", [True, False])
def test_bare_weights_and_old_torch_files_load(tmp_path: Path, zipped: bool) -> None:
    state = network().state_dict()
    torch.save(state, tmp_path / "weights.pt", _use_new_zipfile_serialization=zipped)
    assert_equal(read_public_checkpoint(tmp_path / "weights.pt"), state)


def test_an_empty_average_gives_way_to_the_model(tmp_path: Path) -> None:
    state = network().state_dict()
    torch.save({"ema": {}, "model": state}, tmp_path / "weights.pt")
    assert_equal(read_public_checkpoint(tmp_path / "weights.pt"), state)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_safetensors_load(tmp_path: Path, prefix: str) -> None:
    state = network().state_dict()
    save_file(prefixed(state, prefix), tmp_path / "weights.safetensors")
    assert_equal(read_public_checkpoint(tmp_path / "weights.safetensors"), state)


def test_dit_checkpoints_load(tmp_path: Path) -> None:
    source = DiT(SMALL, in_channels=4, grid=4, patch=2, num_classes=5)
    torch.save({"ema": source.state_dict()}, tmp_path / "dit.pt")
    model = DiT(SMALL, in_channels=4, grid=4, patch=2, num_classes=5)
    load_strictly(model, read_public_checkpoint(tmp_path / "dit.pt"), "give other weights")
    assert_equal(model.state_dict(), source.state_dict())


def test_missing_extra_and_misshapen_weights_are_listed_and_nothing_is_copied() -> None:
    state = network().state_dict()
    del state["blocks.1.mlp.w3.bias"]
    state["blocks.2.mlp.w3.bias"] = torch.zeros(32)
    state["y_embedder.embedding_table.weight"] = torch.zeros(1001, 32)
    model = network(1)
    with pytest.raises(DataError) as caught:
        load_strictly(model, state, "give other weights")
    for told in (
        "missing: blocks.1.mlp.w3.bias",
        "unexpected: blocks.2.mlp.w3.bias",
        "misshapen: y_embedder.embedding_table.weight (1001, 32) instead of (6, 32)",
        "give other weights",
    ):
        assert told in str(caught.value)
    assert_equal(model.state_dict(), network(1).state_dict())


def test_long_lists_of_names_are_cut() -> None:
    with pytest.raises(DataError, match=r"unexpected: extra\.0, .*extra\.7 and 92 more"):
        load_strictly(
            network(), network().state_dict() | {f"extra.{i}": torch.zeros(1) for i in range(100)}, "give other weights"
        )


def test_embedders_do_not_stand_in_for_each_other() -> None:
    with pytest.raises(DataError, match=r"missing: t_embedder_sem\.mlp\.0\.weight.*unexpected: t_embedder\.mlp\.0\.weight"):
        load_strictly(network(embedders=2), network(embedders=1).state_dict(), "give other weights")


def test_the_projector_is_dropped_only_when_asked() -> None:
    state = network(repa=REPA).state_dict()
    with pytest.raises(DataError, match=r"unexpected: repa_projector\.0\.weight"):
        load_strictly(network(1), state, "")
    model = network(1)
    load_strictly(model, without_projector(state), "give other weights")
    assert_equal(model.state_dict(), without_projector(state))


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("embedders", [1, 2])
def test_a_network_is_read_off_its_weights(embedders: int, patch: int) -> None:
    source = network(0, embedders, REPA, patch).eval()
    model = lightningdit_from(source.state_dict())
    assert (model.grid, model.patch, model.in_channels, model.num_classes, model.embedders) == (4, patch, 6, 5, embedders)
    x, t, labels = torch.randn(2, 6, 4, 4), torch.rand(2), torch.tensor([0, 5])
    times = (t, t / 2)
    assert torch.equal(model(x, *times, labels).prediction, source(x, *times, labels).prediction)


def test_semantic_vae_checkpoints_load(tmp_path: Path) -> None:
    source = SemanticVAE(in_channels=12, channels=3, width=16, depth=2, heads=4).eval()
    torch.save({"model_state_dict": source.state_dict(), "epoch": 9, "loss": 0.1}, tmp_path / "semvae.pt")
    vae = semantic_vae_from(read_public_checkpoint(tmp_path / "semvae.pt"), heads=4)
    tokens = torch.randn(2, 12, 4, 4)
    assert torch.equal(vae.encode(tokens).mean, source.encode(tokens).mean)
    assert torch.equal(vae.decode(vae.encode(tokens).mean), source.decode(source.encode(tokens).mean))
    with pytest.raises(DataError, match="5 heads do not divide"):
        semantic_vae_from(source.state_dict(), heads=5)


def test_other_weights_are_told_apart() -> None:
    vae = SemanticVAE(in_channels=12, channels=3, width=16, depth=2, heads=4)
    with pytest.raises(DataError, match="no LightningDiT weights"):
        lightningdit_from(vae.state_dict())
    with pytest.raises(DataError, match="no Semantic VAE weights"):
        semantic_vae_from(network().state_dict(), heads=4)


class Surprise:
    """Runs code of the file's author when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('ran')",))


def test_code_in_a_file_never_runs(tmp_path: Path) -> None:
    torch.save({"ema": network().state_dict(), "extra": Surprise()}, tmp_path / "weights.pt")
    with pytest.raises(DataError, match=r"holds more than tensors and plain values \([\w.]+\).* is not unpickled") as raised:
        read_public_checkpoint(tmp_path / "weights.pt")
    assert "weights_only" not in str(raised.value), "how to run it all the same is not told"


@pytest.mark.parametrize("package", ["pytorch_lightning", "omegaconf"])
def test_a_trainer_s_own_objects_are_left_out_and_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    """Checkpoints of latent diffusion keep the state of callbacks, by class, beside the weights."""

    class ModelCheckpoint:
        def __reduce__(self) -> tuple[Any, ...]:
            return (ModelCheckpoint, ("last",), {"best": 0.1})

        def __init__(self, *_: object) -> None:
            built_here.append(self)

    built_here: list[object] = []
    module = ModuleType(f"{package}.callbacks")
    ModelCheckpoint.__module__, ModelCheckpoint.__qualname__ = module.__name__, "ModelCheckpoint"
    module.ModelCheckpoint = ModelCheckpoint
    monkeypatch.setitem(sys.modules, package, ModuleType(package))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    state = network().state_dict()
    torch.save({"state_dict": state, "callbacks": {ModelCheckpoint: {"best": ModelCheckpoint()}}}, tmp_path / "last.ckpt")
    built = len(built_here)
    assert_equal(read_public_checkpoint(tmp_path / "last.ckpt"), state)
    assert len(built_here) == built
    monkeypatch.undo()
    assert_equal(read_public_checkpoint(tmp_path / "last.ckpt"), state)


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 half a zip file", None])
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    path = tmp_path / name
    if content is None:  # broken off in the middle
        if name.endswith("pt"):
            torch.save(network().state_dict(), path)
        else:
            save_file(network().state_dict(), path)
        content = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(content)
    said = "is no complete|is empty|is text instead of weights|holds more than tensors .* or is damaged"
    with pytest.raises(DataError, match=rf"{name} ({said})"):
        read_public_checkpoint(path)


@pytest.mark.parametrize("content", [{"epoch": 3}, {"ema": {"note": "empty"}}, {}, [torch.zeros(1)]])
def test_files_without_weights_say_what_they_hold(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(DataError, match=r"it holds|holds a list"):
        read_public_checkpoint(tmp_path / "weights.pt")


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_public_checkpoint(tmp_path / "weights.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, value: float) -> None:
    state = network().state_dict()
    state["blocks.1.attn.proj.weight"][0, 0] = value
    save_file(state, tmp_path / "broken.safetensors")
    with pytest.raises(DataError, match=r"holds NaN or infinity in blocks\.1\.attn\.proj\.weight"):
        read_public_checkpoint(tmp_path / "broken.safetensors")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a pointer of Git LFS instead of the file"),
        (b"<!DOCTYPE html>\n<html>", "is text instead of weights, beginning with '<!DOCTYPE html>'"),
        (b'{"error": "not found"}', 'is text instead of weights, beginning with \'{"error"'),
        (b"", "is empty"),
    ],
)
@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_what_downloads_leave_in_place_of_weights_is_told(tmp_path: Path, content: bytes, said: str, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_public_checkpoint(tmp_path / name)


@pytest.mark.parametrize("kind", ["pt", "safetensors", "old.pt"])
@pytest.mark.parametrize("count", [300, pytest.param(3_334, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_no_damage_ends_in_a_traceback(tmp_path: Path, kind: str, count: int) -> None:
    path, state = tmp_path / f"weights.{kind}", dict(list(network().state_dict().items())[:3])
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"ema": state, "step": 3}, path, _use_new_zipfile_serialization=kind == "pt")
    whole, source = path.read_bytes(), random.Random(0)
    told: list[str] = []
    for _ in range(count):
        damaged = bytearray(whole[: source.randrange(1, len(whole))] if source.random() < 0.3 else whole)
        for _ in range(source.randrange(1, 8)):
            damaged[source.randrange(min(len(damaged), 600))] = source.randrange(256)
        path.write_bytes(damaged)
        try:
            read_public_checkpoint(path)
        except DataError as error:
            told.append(str(error))
    assert len(told) > count / 4
    assert all(len(message.splitlines()) == 1 for message in told)
