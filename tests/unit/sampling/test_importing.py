"""Public denoisers, from files in their own names to images: the same ones that the network itself draws."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from denoisers import CLASSES, GRID, SHAPE, texture_vae, variant, write_latents
from published_files import write_denoiser, write_latent_statistics
from safetensors.torch import save_file

from sfd_core.cli.main import app
from sfd_core.cli.sampling import step_of
from sfd_core.experiment.sizes import MODEL_SIZES
from sfd_core.host.errors import ConfigError, DataError, IdentityError
from sfd_core.host.paths import file_digest
from sfd_core.latents.composite import ChannelStatistics, Composite, LatentStatistics
from sfd_core.latents.identity import LatentIdentity, read_latent_identity
from sfd_core.models.denoisers.dit import DiT
from sfd_core.models.denoisers.lightningdit import LightningDiT, RepaHead
from sfd_core.models.vaes.loader import load_texture_vae
from sfd_core.sampling.artifact import Denoiser, SnapshotRecord, load_denoiser
from sfd_core.sampling.importing import ImportOptions, LatentSource, import_denoiser, read_public_statistics
from sfd_core.sampling.pipeline import DEFAULT_SAMPLER, Pipeline

SEMANTIC = 2
SFD = ImportOptions(kind="sfd", delta_t=0.3, step=4_000_000, batch_size=256, num_classes=None)
LIGHTNINGDIT = replace(SFD, kind="lightningdit")
SAMPLER = DEFAULT_SAMPLER.model_copy(update={"evaluations": 5})
TEXTURE = ChannelStatistics(torch.linspace(-1, 1, SHAPE.channels), torch.linspace(0.5, 2, SHAPE.channels))
PCA = ChannelStatistics(torch.zeros(3), torch.ones(3))
SEMANTICS = ChannelStatistics(torch.tensor([0.3, -0.2]), torch.tensor([1.5, 0.7]))


def network(seed: int = 0, channels: int = SHAPE.channels + SEMANTIC, clocks: Any = 2, classes: int = 3) -> LightningDiT:
    """A network whose weights are all random, with REPA's projector, as it is published."""
    head = RepaHead(block=2, width=16, target_channels=5)
    model = LightningDiT(MODEL_SIZES["tiny"], channels, GRID, 2, classes, clocks, head)
    source = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05, generator=source)
    return model.eval()


def published(path: Path, model: torch.nn.Module) -> Path:
    return write_denoiser(path, model.state_dict())


def statistics_file(path: Path, *parts: ChannelStatistics) -> Path:
    return write_latent_statistics(path, *(torch.cat([getattr(part, name) for part in parts]) for name in ("mean", "std")))


@pytest.fixture
def vae(tmp_path: Path) -> Path:
    return texture_vae(tmp_path / "vae")


@pytest.fixture
def encode(tmp_path: Path, vae: Path) -> Path:
    """What the encode stage writes."""
    latents = {"z_tex": np.zeros((3, 2, SHAPE.channels, GRID, GRID), np.float32)}
    statistics = {"texture": TEXTURE, "vae": SEMANTICS, "pca": PCA}
    write_latents(tmp_path / "encode", latents, statistics, load_texture_vae(vae)[1])
    return tmp_path / "encode"


def drawn_by_hand(model: LightningDiT, vae: Path, **changes: Any) -> torch.Tensor:
    """Images of the network itself, put together without any file."""
    params = variant(**changes)
    semantic = None if params.semantic == "none" else SEMANTICS
    denoiser = Denoiser(
        model=model,
        variant=params,
        latent=type("Latent", (), {"channels": model.in_channels, "grid": GRID})(),
        composite=Composite(LatentStatistics(TEXTURE, semantic)),
        classes=CLASSES,
        identity=LatentIdentity({}, {}, {}, "", ""),
        snapshot=SnapshotRecord(0, 0, ""),
    )
    return Pipeline(denoiser, load_texture_vae(vae)[0])([0, 1, 2], seed=3, sampler=SAMPLER).images


@pytest.mark.parametrize("kind", ["sfd", "autoguidance", "lightningdit"])
@pytest.mark.parametrize("origin", ["encode", "statistics", "one file"])
def test_the_command_s_artifact_draws_the_network_s_images(
    tmp_path: Path, vae: Path, encode: Path, kind: str, origin: str, capsys: pytest.CaptureFixture[str]
) -> None:
    composite = kind != "lightningdit"
    model = network() if composite else network(channels=SHAPE.channels, clocks=1)
    file = published(tmp_path / "4000000.pt", model)
    words = ["import", kind, str(file), "--out", str(tmp_path / "imported")]
    if origin == "encode":
        words += ["--encode", str(encode)]
    elif origin == "one file":
        stats = statistics_file(tmp_path / "latents_stats.pt", TEXTURE, SEMANTICS)
        words += ["--statistics", str(stats), "--texture-vae", str(vae)]
    else:
        parts = {"latents_stats.pt": TEXTURE, "latents_sv_stats.pt": SEMANTICS}
        files = [str(statistics_file(tmp_path / name, part)) for name, part in parts.items()]
        words += ["--statistics", *(files if composite else files[:1]), "--texture-vae", str(vae)]
    app(words)
    assert f"{kind}-tiny" in capsys.readouterr().out

    denoiser = load_denoiser(tmp_path / "imported")
    assert (denoiser.snapshot.step, denoiser.snapshot.images_seen) == (4_000_000, 4_000_000 * 256)
    assert denoiser.variant.delta_t == (0.3 if composite else 0.0)
    assert list(denoiser.classes) == (CLASSES if origin == "encode" else ["0", "1", "2"])
    if origin == "encode":
        assert denoiser.identity == read_latent_identity(encode)
    drawn = Pipeline.from_artifact(tmp_path / "imported", vae)([0, 1, 2], seed=3, sampler=SAMPLER).images
    by_hand = drawn_by_hand(model, vae, **({} if composite else {"semantic": "none", "delta_t": 0.0}))
    assert torch.equal(drawn, by_hand)
    assert len(drawn.unique()) > 10
    assert not torch.equal(drawn[0], drawn[1])


def imported(folder: Path, model: torch.nn.Module, source: LatentSource, options: ImportOptions = SFD) -> Path:
    folder.mkdir()
    import_denoiser(published(folder / "weights.pt", model), options, source, folder / "artifact")
    return folder / "artifact"


def test_a_guide_of_the_same_latents_guides_and_of_others_is_refused(tmp_path: Path, vae: Path, encode: Path) -> None:
    known = LatentSource.of_encode(encode)
    stats = statistics_file(tmp_path / "stats.pt", TEXTURE, SEMANTICS)
    other = LatentSource.of_statistics([stats], vae)
    main = imported(tmp_path / "main", network(0), known)
    guide = imported(tmp_path / "guide", network(1), known, replace(SFD, kind="autoguidance"))
    foreign = imported(tmp_path / "foreign", network(1), other, replace(SFD, kind="autoguidance"))
    settings = {"guidance": "autoguidance", "guide": "given", "texture": {"scale": 1.5, "interval": [0.0, 1.0]}}
    guided = Pipeline.from_artifact(main, vae, guide=guide)([0, 1], sampler=SAMPLER, **settings)
    assert not torch.equal(guided.images, Pipeline.from_artifact(main, vae)([0, 1], sampler=SAMPLER).images)
    with pytest.raises(IdentityError, match="made from different latents"):
        Pipeline.from_artifact(main, vae, guide=foreign)


def test_two_imports_with_the_same_statistics_belong_together(tmp_path: Path, vae: Path) -> None:
    stats = statistics_file(tmp_path / "stats.pt", TEXTURE, SEMANTICS)
    folders = [
        imported(tmp_path / name, network(seed), LatentSource.of_statistics([stats], vae))
        for seed, name in enumerate(("main", "guide"))
    ]
    Pipeline.from_artifact(folders[0], vae, guide=folders[1])
    with pytest.raises(IdentityError, match="texture VAE"):
        Pipeline.from_artifact(folders[0], texture_vae(tmp_path / "other", seed=1))


def test_a_synchronous_checkpoint_with_one_clock(tmp_path: Path, vae: Path, encode: Path) -> None:
    model, known = network(clocks=1), LatentSource.of_encode(encode)
    with pytest.raises(ConfigError, match=r"delta_t is 0\.3, but .* has one time embedder.*--delta-t 0"):
        imported(tmp_path / "wrong", model, known)
    folder = imported(tmp_path / "sync", model, known, replace(SFD, delta_t=0.0))
    pipeline = Pipeline.from_artifact(folder, vae)
    drawn = pipeline([0, 1, 2], seed=3, sampler=SAMPLER).images
    assert torch.equal(drawn, drawn_by_hand(model, vae, delta_t=0.0))
    for order in ({"delta_t": 0.3}, {"path": [[0.0, 0.0], [0.0, 1.0], [1.0, 1.0]]}):
        with pytest.raises(ConfigError, match=r"this denoiser has one time embedder, so .*; sample with delta_t 0"):
            pipeline([0], seed=3, sampler=SAMPLER, **order)
    two = Pipeline.from_artifact(imported(tmp_path / "two", network(), known), vae)
    guided = Pipeline(two.denoiser, two.vae, pipeline.denoiser)
    sampler = SAMPLER.model_copy(update={"guidance": "autoguidance", "guide": "sync"})
    guided.require_possible([0], sampler.model_copy(update={"delta_t": 0.0}))
    with pytest.raises(ConfigError, match="its guide has one time embedder"):
        guided.require_possible([0], sampler)


def test_safetensors_import(tmp_path: Path, vae: Path, encode: Path) -> None:
    model = network()
    save_file(model.state_dict(), tmp_path / "70000.safetensors")
    import_denoiser(tmp_path / "70000.safetensors", SFD, LatentSource.of_encode(encode), tmp_path / "out")
    drawn = Pipeline.from_artifact(tmp_path / "out", vae)([0, 1, 2], seed=3, sampler=SAMPLER).images
    assert torch.equal(drawn, drawn_by_hand(model, vae))
    origin = json.loads((tmp_path / "out" / "origin.json").read_text())
    assert origin["sha256"] == file_digest(tmp_path / "70000.safetensors")


def without(model: LightningDiT, name: str) -> torch.nn.Module:
    class Incomplete(torch.nn.Module):
        def state_dict(self, *_: Any, **__: Any) -> dict[str, torch.Tensor]:
            return {key: value for key, value in model.state_dict().items() if key != name} | {"extra.bias": torch.zeros(1)}

    return Incomplete()


WRONG: dict[str, tuple[Callable[[], torch.nn.Module], ImportOptions, str]] = {
    "dit": (lambda: DiT(MODEL_SIZES["tiny"], 6, GRID, 2, 3), SFD, "weights of a DiT"),
    "texture as sfd": (lambda: network(channels=4, clocks=1), SFD, "texture only; import it as lightningdit"),
    "sfd as texture": (network, LIGHTNINGDIT, "import it as sfd"),
    "other channels": (
        lambda: network(channels=7),
        SFD,
        "generates 7 channels, but sfd needs 6: the latents have 4 texture and 2 semantic",
    ),
    "other texture": (lambda: network(channels=3, clocks=1), LIGHTNINGDIT, "but lightningdit needs 4"),
    "classes": (lambda: network(classes=1000), SFD, "has 1000 classes, but got 3"),
    "counted classes": (network, replace(SFD, num_classes=1000), "has 3 classes, but got 1000"),
    "missing and extra": (
        lambda: without(network(), "blocks.1.mlp.w3.bias"),
        SFD,
        r"missing: blocks\.1\.mlp\.w3\.bias; unexpected: extra\.bias",
    ),
    "grid": (
        lambda: LightningDiT(MODEL_SIZES["tiny"], 6, 2 * GRID, 2, 3, 2),
        SFD,
        r"has a 8x8 latent grid, but the encoded latents have 4x4",
    ),
    "size": (
        lambda: LightningDiT(replace(MODEL_SIZES["tiny"], depth=3), 6, GRID, 2, 3, 2),
        SFD,
        "depth 3, width 128 and 4 heads, which is none of the sizes tiny, S, B",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_named_and_nothing_is_written(tmp_path: Path, encode: Path, case: str) -> None:
    build, options, said = WRONG[case]
    with pytest.raises(DataError, match=said):
        imported(tmp_path / "wrong", build(), LatentSource.of_encode(encode), options)
    assert not (tmp_path / "wrong" / "artifact").exists()


def test_statistics_of_texture_alone_are_not_enough_for_sfd(tmp_path: Path, vae: Path) -> None:
    source = LatentSource.of_statistics([statistics_file(tmp_path / "stats.pt", TEXTURE)], vae)
    with pytest.raises(DataError, match="give those of the semantic latent too"):
        imported(tmp_path / "sfd", network(), source)


def test_bad_statistics_are_named(tmp_path: Path, vae: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.pt does not exist"):
        read_public_statistics(tmp_path / "nothing.pt")
    torch.save({"ema": {}}, tmp_path / "weights.pt")
    with pytest.raises(DataError, match=r"weights\.pt holds ema instead of tensors mean and std"):
        read_public_statistics(tmp_path / "weights.pt")
    with pytest.raises(DataError, match=r"has statistics of 2 channels, but the texture VAE .* has 4"):
        LatentSource.of_statistics(
            [statistics_file(tmp_path / "sv.pt", SEMANTICS), statistics_file(tmp_path / "t.pt", TEXTURE)], vae
        )


def test_an_existing_folder_is_left_alone(tmp_path: Path, encode: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="already exists"):
        import_denoiser(published(tmp_path / "1.pt", network()), SFD, LatentSource.of_encode(encode), tmp_path / "kept")
    assert (tmp_path / "kept" / "thesis.txt").read_text() == "years of work"


def test_the_step_is_the_number_that_names_the_file() -> None:
    assert step_of(Path("checkpoints/0070000.pt")) == 70_000
    with pytest.raises(ConfigError, match="give --step"):
        step_of(Path("sfd_xl.pt"))


@pytest.mark.parametrize("offset", ["-0.1", "1.5", "nan"])
def test_an_impossible_offset_is_named(offset: str, encode: Path, tmp_path: Path) -> None:
    words = ["import", "sfd", "1.pt", "--out", str(tmp_path / "out"), "--encode", str(encode), "--delta-t", offset]
    with pytest.raises(ConfigError, match="--delta-t"):
        app(words)
