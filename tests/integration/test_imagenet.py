"""The ImageNet presets through DVC, shrunk by overrides alone: 256 pixels, the published formats and shapes, random weights."""

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from projects import Project, copy_pipeline
from published_files import write_denoiser, write_encoder, write_inception, write_latent_statistics, write_texture_vae
from safetensors.torch import load_file

from sfd_core.data.store.shards import ShardReader
from sfd_core.experiment.sizes import MODEL_SIZES
from sfd_core.models.denoisers.lightningdit import LightningDiT, RepaHead

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("imagenet"), pytest.mark.timeout(3000)]

SAMPLE = Path(os.environ.get("SFD_IMAGENET_SAMPLE", "imagenet-sample-1000.tar"))
"""One image of each class of ImageNet in class folders, where somebody has it."""
CLASSES = ["n01440764", "n01443537", "n02123045", "n07749582"]
TRAIN, HELD_OUT = 2, 1
"""Images of each class."""
QUICK = {"inputs", "schedule"}
"""Run in each of these experiments: they look, or have nothing to do."""
WIDTH = 32
"""Of the texture VAEs, a quarter of the published; everything else of them is as published."""
SHRUNK: dict[str, Any] = {
    "features.weights": "weights/dinov2.safetensors",
    "features.batch_size": 4,
    "features.precision": "float32",
    "semantic_vae.optimisation.precision": "float32",
    "train.optimisation.precision": "float32",
    **{f"semantic_vae.optimisation.{key}": value for key, value in {"steps": 2, "batch_size": 4, "warmup_steps": 1}.items()},
    "semantic_vae.optimisation.decay_steps": 0,
    "encode.batch_size": 4,
    "train.optimisation.steps": 2,
    "train.optimisation.batch_size": 4,
    "train.snapshots": 1,
    "reference.extractors": ["inception", "efficientnet_lite2"],
    "reference.inception_weights": "weights/inception.pth",
    # ADM's statistics are of Inception's standard weights and refused with others
    "reference.adm_npz": None,
    "reference.batch_size": 4,
    "evaluate.snapshot_samples": 6,
    "evaluate.final_samples": 6,
    "evaluate.kid_subset_size": 2,
    "evaluate.neighbours": 2,
    "evaluate.sampler.evaluations": 4,
    "evaluate.sampler.batch_size": 6,
    "report.grid_images": 4,
    "engine.compile": False,
}
CHANNELS = {"sfd": 32 + 16, "guide": 32 + 16, "repa": 32, "redi": 32 + 8, "dit": 32}
"""Texture and semantics of the latent that each variant denoises."""


@dataclass(frozen=True)
class Run:
    """A preset run in a folder of its own."""

    project: Project
    path: Path
    printed: str

    def json(self, name: str) -> Any:
        return json.loads((self.path / "outputs" / name).read_text())

    @property
    def ran(self) -> set[str]:
        """Stages whose command was run, not restored from the cache."""
        return set(re.findall(r"^Running stage '([^']+)':$", self.printed, re.MULTILINE))


def draw_photographs(folder: Path, per_class: int, seed: int) -> None:
    """Write JPEG files like ImageNet's: of any size, wide and tall, some grey or CMYK, one larger than twice the side."""
    rng = np.random.default_rng(seed)
    modes = ["RGB", "L", "CMYK"]
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            width, height = (600, 560) if label == number == 0 else rng.integers(200, 500, 2)
            small = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            image = Image.fromarray(small).resize((int(width), int(height)), Image.Resampling.BICUBIC)
            mode = modes[(label + number) % 3]
            image.convert(mode).save(folder / name / f"{name}_{number}.JPEG", quality=90)


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with images and files where docs/imagenet.md says to put them."""
    project = copy_pipeline(tmp_path_factory.mktemp("imagenet") / "project")
    draw_photographs(project.path / "data" / "imagenet" / "train", TRAIN, seed=0)
    draw_photographs(project.path / "data" / "imagenet" / "val", HELD_OUT, seed=1)
    weights = project.path / "weights"
    write_texture_vae(weights / "ldm-imagenet256-f16d32-50ep.ckpt", WIDTH, seed=0)
    write_texture_vae(weights / "vavae-imagenet256-f16d32-dinov2.pt", WIDTH, seed=1)
    write_encoder(weights / "dinov2.safetensors", "vit_base_patch14_reg4_dinov2.lvd142m")
    write_inception(weights / "inception.pth")
    project.run("git", "init", "--quiet")
    return project


def run(project: Project, preset: str, active: list[str], changes: Mapping[str, Any] | None = None) -> Run:
    """Run a preset by the two documented commands; denoisers are tiny, everything that they are given is as published."""
    project.run("sfd", "preset", "use", preset)
    sizes = {f"variants.{name}.size": "tiny" for name in active}
    values = SHRUNK | sizes | {"active": active, "report.baseline": active[0]} | (changes or {})
    assignments = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]
    name = preset.replace("+", "-")
    ended = project.run("sfd", "experiment", name, *(word for one in assignments for word in ("--set", one)))
    return Run(project, project.path / ".sfd" / "experiments" / name, ended.stdout)


VARIANTS = ["sfd", "repa", "redi", "dit"]


@pytest.fixture(scope="module")
def paper(imagenet: Project) -> Run:
    """The base of all presets with most of its variants."""
    return run(imagenet, "imagenet256-xl-80ep", VARIANTS)


def test_every_output_is_there(paper: Run) -> None:
    lock = yaml.safe_load((paper.path / "dvc.lock").read_text())["stages"]
    shared = ["prepare", "texture_vae", "features", "semantic_vae", "encode", "schedule", "reference"]
    stages = {"code", "inputs", *shared, "report"}
    assert set(lock) == stages | {f"{stage}@{name}" for stage in ("train", "evaluate", "studies") for name in VARIANTS}
    for stage, entry in lock.items():
        for out in entry["outs"]:
            path = paper.path / out["path"]
            whole = path.stat().st_size if path.is_file() else any(path.iterdir())
            assert whole or stage.startswith("studies@"), f"{stage}: {out['path']} is empty"  # the preset has no studies


def test_images_of_every_mode_and_shape_become_squares_of_256(paper: Run) -> None:
    train, held_out = (ShardReader(paper.path / "outputs" / "prepare" / part) for part in ("train", "held_out"))
    assert train["image"].shape == (len(CLASSES) * TRAIN, 3, 256, 256)
    assert held_out["image"].shape == (len(CLASSES) * HELD_OUT, 3, 256, 256)
    assert train.meta["classes"] == CLASSES
    assert train["label"].array.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    grey = train["image"].take([1])[0]
    np.testing.assert_array_equal(grey[0], grey[2])


def test_tokens_and_latents_have_the_published_shapes(paper: Run) -> None:
    outputs = paper.path / "outputs"
    tokens = load_file(outputs / "features" / "statistics.safetensors")
    assert tokens["token_mean"].shape == (768,)
    recipe = paper.json("features/train/tokens.json")
    assert recipe["encoder"] | {"weights": ""} == {
        "name": "vit_base_patch14_reg4_dinov2.lvd142m",
        "weights": "",
        "input_size": 224,
        "grid": 16,
        "precision": "float32",
    }
    latents = ShardReader(outputs / "encode" / "train")
    for field, channels in {"z_tex": 32, "z_sem": 16, "z_pca": 8}.items():
        assert latents[field].shape == (len(CLASSES) * TRAIN, 2, channels, 16, 16)
        values = latents[field].array
        assert np.isfinite(values).all()
        assert (values[:, 0] != values[:, 1]).any(), "a mirror image is another image"
    assert load_file(outputs / "semantic_vae" / "model.safetensors")["encoder.0.weight"].shape == (768, 768)
    identity = paper.json("encode/identity.json")
    assert identity["texture_vae"]["name"] == "sd-vae-f16d32-50ep"
    assert identity["encoder"] == recipe["encoder"]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_trains_two_steps_and_is_judged_with_its_protocol(paper: Run, name: str) -> None:
    require_trained_and_judged(paper, name)


def require_trained_and_judged(run: Run, name: str) -> None:
    model = run.json(f"train/{name}/model.json")
    assert model["latent"]["texture_channels"] + model["latent"]["semantic_channels"] == CHANNELS[name]
    assert (model["latent"]["grid"], model["classes"]) == (16, CLASSES)
    assert run.json(f"train/{name}/metrics.json")["steps"] == 2
    [snapshot] = model["snapshots"]
    weights = load_file(run.path / "outputs" / "train" / name / snapshot["file"])
    last = weights["final_layer.linear.weight"]
    assert last.shape[0] == CHANNELS[name] * (2 if name == "dit" else 1)
    assert torch.isfinite(last).all()
    assert last.any(), "it starts at zero, so it was not trained"
    with np.load(run.path / "outputs" / "evaluate" / name / "samples.npz", allow_pickle=False) as drawn:
        assert drawn["images"].shape == (1, 4, 3, 256, 256)
    numbers = run.json(f"evaluate/{name}/numbers.json")["final"]
    # other weights than Inception's standard ones give no FID
    inception = {f"{kind}_inception_custom" for kind in ("fd", "sfid", "is", "precision", "recall", "kid")}
    assert set(numbers) == inception | {f"{kind}_efficientnet_lite2" for kind in ("fd", "kid", "precision", "recall")}
    for number in numbers.values():
        assert np.isfinite(number["value"])
        protocol = number["protocol"]
        assert (protocol["samples"], protocol["labels"], protocol["seed"]) == (6, "class-balanced", 0)
        assert protocol["evaluations"] == 4
        assert protocol["recipe"]["step"] == 2


def test_the_report_shows_every_variant(paper: Run) -> None:
    page = (paper.path / "report" / "index.html").read_text()
    assert "Semantic-First Diffusion on ImageNet 256x256" in page
    for name in VARIANTS:
        assert f'"{name}"' in page or f">{name}<" in page


def test_another_texture_vae_encodes_and_trains_again_but_keeps_images_and_semantics(paper: Run) -> None:
    other = run(paper.project, "vavae+sfd", ["sfd"])
    assert other.ran == QUICK | {"texture_vae", "encode", "reference", "train@sfd", "studies@sfd", "evaluate@sfd", "report"}
    assert other.json("encode/identity.json")["texture_vae"]["name"] == "vavae-f16d32-dinov2"
    require_trained_and_judged(other, "sfd")


def test_a_guide_of_its_own_preset_guides_the_long_recipe(paper: Run) -> None:
    guide = run(paper.project, "imagenet256-guide-b", ["guide"])
    assert guide.ran == QUICK | {"train@guide", "studies@guide", "evaluate@guide", "report"}
    (guide.path / "outputs" / "train" / "guide").rename(paper.project.path / "weights" / "guide-b")
    guided = run(paper.project, "imagenet256-xl", ["sfd"])
    require_trained_and_judged(guided, "sfd")
    protocol = guided.json("evaluate/sfd/numbers.json")["final"]["fd_inception_custom"]["protocol"]
    assert "autoguidance" in protocol["guidance"]
    assert guided.json("train/sfd/model.json")["identity"] == paper.json("encode/identity.json")


def test_public_checkpoints_are_imported_guided_and_judged_by_several_processes(paper: Run) -> None:
    place = Project(paper.path)
    statistics = load_file(paper.path / "outputs" / "encode" / "statistics.safetensors")
    mean, std = (torch.cat([statistics[f"{part}_{name}"] for part in ("texture", "vae")]) for name in ("mean", "std"))
    write_latent_statistics(paper.path / "weights" / "latents_stats.pt", mean, std)
    for step, kind, out in (("4000000", "sfd", "sfd-public"), ("0100000", "autoguidance", "guide-public")):
        write_denoiser(paper.path / "weights" / f"{step}.pt", public_denoiser(int(step)))
        source = ["--statistics", "weights/latents_stats.pt", "--texture-vae", "outputs/texture_vae"]
        place.run("sfd", "import", kind, f"weights/{step}.pt", "--out", f"weights/{out}", *source)
    guided = ["--guidance", "autoguidance", "--guide", "weights/guide-public"]
    drawn = [*guided, "--texture-scale", "1.5", "--semantic-scale", "1.5"]
    place.run("sfd", "sample", "weights/sfd-public", *drawn, "--labels", "2", "--seed", "0", "--out", "samples.png")
    assert np.asarray(Image.open(paper.path / "samples.png")).shape[0] >= 256
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "sfd_core.cli"]
    judged = ["weights/sfd-public", "--samples", "6"]
    place.run(*torchrun, "evaluate", *judged, "--out", "together.json")
    place.run("sfd", "evaluate", *judged, "--out", "alone.json")
    together, alone = (json.loads((paper.path / name).read_text()) for name in ("together.json", "alone.json"))
    assert together == alone
    assert "equal" in place.run("sfd", "evaluate", "--from", "together.json").stdout
    place.run("sfd", "guidance-curve", *judged, *guided, "--scales", "1.4", "1.5", "--out", "guidance")
    assert len((paper.path / "guidance" / "curve.csv").read_text().splitlines()) == 1 + 2
    other = ["--guidance", "autoguidance", "--guide", "outputs/train/sfd", "--texture-scale", "1.5"]
    refused = place.run("sfd", "sample", "weights/sfd-public", *other, check=False)
    assert refused.returncode == 2
    assert "different latents" in refused.stderr


def public_denoiser(seed: int) -> dict[str, torch.Tensor]:
    """Return the weights of a small SFD with REPA's projector, in the public names, none of them zero."""
    torch.manual_seed(seed)
    model = LightningDiT(MODEL_SIZES["tiny"], 48, 16, 1, len(CLASSES), 2, RepaHead(block=2, width=32, target_channels=768))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05)
    return model.state_dict()


@pytest.mark.skipif(not SAMPLE.is_file(), reason="a sample of ImageNet in its own layout is not there")
def test_real_images_of_all_classes_go_through_prepare(imagenet: Project) -> None:
    imagenet.run("sfd", "preset", "use", "imagenet256-b")
    path = str(SAMPLE.resolve())
    imagenet.set({"prepare.source": "tar", "prepare.path": path, "prepare.held_out_path": path})
    imagenet.run("dvc", "repro", "prepare")
    train = ShardReader(imagenet.path / "outputs" / "prepare" / "train")
    assert (len(train), len(train.meta["classes"])) == (1000, 1000)
    assert train["image"].shape == (1000, 3, 256, 256)
