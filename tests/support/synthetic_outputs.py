"""A small tree of outputs in the formats that the stages write, for tests of what reads them."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from sfd_core.diffusion.schedule import Schedule
from sfd_core.evaluation.metrics import number_name
from sfd_core.experiment.params import Params, StudyParams, parse_params
from sfd_core.experiment.presets import load_preset
from sfd_core.host.paths import write_json
from sfd_core.reporting.protocol import measured_with, recipe
from sfd_core.reporting.published_numbers import ENCODER
from sfd_core.reporting.sources import TABLES, VARIED

PRESETS = Path(__file__).parents[2] / "presets"
RESOLUTION, GRID = 32, 8
FRAMES, SAMPLES = 27, 6
SNAPSHOTS = 5
CLASSES = [
    "Activities", "Animals & Nature", "Flags", "Food & Drink", "Objects", "People & Body", "Smileys & Emotion",
    "Symbols", "Travel",
]  # fmt: skip
FINAL = {"dit": 3098.0, "lightningdit": 2274.0, "sync": 2255.0, "sfd": 2156.0, "cascade": 2200.0, "any_order": 2300.0}
POINTS = {"offsets": ("offsets", 0.3), "guidance": ("scales", 2.0), "error_field": ("semantic_weights", 0.5)}
"""What a kind of study varies, and where it is best."""
WEIGHTS = "0123abcd"
"""The hash of the last snapshot of every variant."""
PROTOCOL = {
    "extractor": "efficientnet_lite2", "weights": "ab12cd34", "samples": 1500, "solver": "euler", "evaluations": 40,
    "seed": 0, "recipe": {"weights": WEIGHTS},
}  # fmt: skip


IMAGENET_CLASSES = [f"class {index}" for index in range(1000)]


def imagenet_like(params: Params) -> Params:
    """Return the experiment at 256 pixels, evaluated as papers do."""
    values = params.model_dump(mode="json")
    values["prepare"] |= {"source": "folder", "path": "images", "labels": "folder", "resolution": 256}
    values["prepare"] |= {"styles": None, "per_style": None}
    values["texture_vae"] = load_preset("imagenet256-xl", PRESETS).values["texture_vae"]
    values["features"]["encoder"] = ENCODER
    values["features"]["grid"] = 256 // values["texture_vae"]["downsampling"]
    values["reference"] |= {"extractors": ["inception", "dinov2"], "adm_npz": "data/reference.npz"}
    values["evaluate"] |= {"snapshot_samples": 50_000, "final_samples": 50_000}
    values["evaluate"]["sampler"]["evaluations"] = 100
    values["train"]["optimisation"]["optimizer"] = "adamw"
    return parse_params(values)


def number_names(params: Params) -> list[str]:
    """Names of the numbers of every extractor, as columns of the curves."""
    kinds = ("fd", "kid", "precision", "recall")
    return [number_name(kind, extractor) for extractor in params.reference.extractors for kind in kinds]


def write_outputs(root: Path, params: Params, classes: list[str] = CLASSES) -> Path:
    """Write outputs of every active variant, of the VAEs and of the reference stage under `root` and return it."""
    for index, name in enumerate(params.active):
        final = FINAL.get(name, 2400.0)
        _write_training(root / "train" / name, index, classes)
        _write_evaluation(root / "evaluate" / name, params, name, final)
    for name, study in params.active_studies().items():
        _write_study(root / "studies" / study.variant / name, study, params)
    real = {"floor": 216.0, "ceiling": 480.0, "train_subset": 72.0}
    reference = {kind: _numbers(params, distance) for kind, distance in real.items()}
    snapshot = {kind: _numbers(params, 1.1 * distance, samples=500) for kind, distance in real.items()}
    write_json(root / "reference" / "metrics.json", reference | {"snapshot": snapshot})
    prepared = {"images": {"train": 500}, "classes": len(classes), "per_class": {"train": dict.fromkeys(classes, 50)}}
    write_json(root / "prepare" / "metrics.json", prepared)
    for stage in ("texture_vae", "semantic_vae"):
        _write_history(root / stage / "history.csv", ("loss", "mse", "kl"), 1.0)
    _write_picture(root / "texture_vae" / "reconstructions.png", 2, 12)
    return root


def write_studies(folder: Path, params: Params) -> Path:
    """Write the committed tables, as measured with `params`."""
    folder.mkdir(parents=True, exist_ok=True)
    hashes = measured_with(params, {})
    rates, seeds = [], []
    for name, final in FINAL.items():
        grid = enumerate((1e-3, 2e-3, 4e-3))
        rates += [{"variant": name, "learning_rate": rate, "seed": 0} | _fd(final * (1.3 - 0.15 * k)) for k, rate in grid]
        seeds += [{"variant": name, "learning_rate": 4e-3, "seed": k} | _fd(final * (1 + 0.004 * k)) for k in range(3)]
    pd.DataFrame(rates).assign(samples=640, **hashes).to_csv(folder / "learning_rates.csv", index=False)
    _with_recipes(seeds, params).assign(**hashes).to_csv(folder / "seeds.csv", index=False)
    offsets = [
        {"study": f"offsets-{seed}", "variant": "sfd", "seed": seed, "delta_t": offset, "samples": 1500}
        | _fd(100 + 40 * (offset - 0.3) ** 2 + seed)
        for seed in range(3)
        for offset in (0.0, 0.3, 1.0)
    ]
    _with_recipes(offsets, params).assign(**hashes).to_csv(folder / "offsets.csv", index=False)
    steps = np.array([1500, 3000, 6000])
    long = [pd.DataFrame({"variant": name, **_costs(steps), **_fd(FINAL[name] * (1500 / steps) ** 0.3)}) for name in FINAL]
    pd.concat(long).assign(**hashes).to_csv(folder / "long.csv", index=False)
    guided = [
        {"study": f"{name} {kind}", "variant": name, "seed": 0, "scale": scale, "samples": 1500}
        | _fd(FINAL[name] * (1 - 0.1 * k))
        for name in ("lightningdit", "sfd")
        for kind in ("autoguidance", "semantic")
        for k, scale in enumerate((1.5, 2.0))
    ]
    _with_recipes(guided, params).assign(**hashes).to_csv(folder / "guided.csv", index=False)
    return folder


def _with_recipes(rows: list[dict[str, Any]], params: Params) -> pd.DataFrame:
    """Return rows as a table that says how each variant was trained, with the row's seed."""
    made = [params.variants[row["variant"]].model_copy(update={"seed": row["seed"]}) for row in rows]
    return pd.DataFrame(rows).assign(recipe=[recipe(params, variant) for variant in made])


def emblems(count: int, sharpness: float, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Draw (count, 3, R, R) uint8 coloured discs and bars that rise out of noise as `sharpness` goes from 0 to 1."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : RESOLUTION * 1j, -1 : 1 : RESOLUTION * 1j]
    images = []
    for k in range(count):
        colour, other = np.random.default_rng(k).uniform(0.1, 0.9, (2, 3, 1, 1))
        disc = (x**2 + y**2 < 0.75)[None]
        bar = (np.abs(x * np.cos(k) + y * np.sin(k)) < 0.25)[None]
        picture = np.where(disc & bar, other, np.where(disc, colour, 1.0))
        noise = random.normal(0.5, 0.35, picture.shape)
        images.append((sharpness * picture + (1 - sharpness) * noise).clip(0, 1))
    return (np.stack(images) * 255).astype(np.uint8)


def payload(html: str) -> dict[str, Any]:
    """Return the data of a report's page."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found
    loaded: dict[str, Any] = json.loads(found[1])
    return loaded


def train_again(root: Path, name: str) -> None:
    """Replace the weights of a variant by those of a later training, which is not evaluated yet."""
    file = root / "train" / name / "model.json"
    write_json(file, json.loads(file.read_text()) | {"files": {"snapshots/step-00001500.safetensors": "later"}})


def _write_training(folder: Path, index: int, classes: list[str]) -> None:
    terms = ("loss", "mse", "vlb") if index == 0 else ("loss", "mse", "cosine")
    _write_history(folder / "history.csv", terms, 1.0 + 0.2 * index)
    write_json(
        folder / "model.json",
        {"classes": classes, "num_classes": len(classes), "files": {"snapshots/step-00001500.safetensors": WEIGHTS}},
    )


def _write_history(path: Path, terms: tuple[str, ...], scale: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    step = np.arange(10, 1501, 10)
    decay = scale * (0.2 + np.exp(-step / 300))
    table: dict[str, Any] = {"step": step, "images_seen": step * 64, "seconds": step * 0.15}
    table |= {term: decay / (k + 1) for k, term in enumerate(terms)}
    table |= {
        "repa": 0.0 * decay,
        "gradient_norm": decay,
        "learning_rate": np.minimum(step / 100, 1) * 4e-3,
        "images_per_second": 420.0 + 0 * decay,
    }
    pd.DataFrame(table).to_csv(path, index=False)


def _write_evaluation(folder: Path, params: Params, name: str, final: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    variant, steps = params.variants[name], np.linspace(300, 1500, SNAPSHOTS).astype(int)
    curve = pd.DataFrame(_costs(steps))
    for column in number_names(params):
        last = _value(column, final)
        curve[column] = last * (steps[-1] / steps) ** (-0.2 if column.startswith(("precision", "recall")) else 0.5)
    curve.to_csv(folder / "curve.csv", index=False)
    numbers = {"final": _numbers(params, final)}
    if variant.semantic != "none":
        numbers["oracle"] = _numbers(params, 0.95 * final, samples=500)
    write_json(folder / "numbers.json", numbers)
    shares = np.full(len(CLASSES), 1 / len(CLASSES))
    drawn = np.roll(np.linspace(0.5, 1.5, len(CLASSES)), int(final)) / len(CLASSES)
    classes = {"class": CLASSES, "real": shares, "samples": drawn, "recognised": 0.98 + 0 * shares}
    pd.DataFrame(classes).to_csv(folder / "classes.csv", index=False)
    labels = np.arange(params.report.grid_images) % len(CLASSES)
    images = np.stack([emblems(len(labels), 0.25 + 0.75 * k / (SNAPSHOTS - 1) * 2156 / final, k) for k in range(SNAPSHOTS)])
    np.savez_compressed(folder / "samples.npz", images=images, steps=steps, labels=labels)
    _write_trajectory(folder / "trajectory.npz", variant.delta_t, variant.semantic != "none", labels[:SAMPLES])
    _write_picture(folder / "neighbours.png", 8, 4)


def _write_study(folder: Path, study: StudyParams, params: Params) -> None:
    folder.mkdir(parents=True)
    varied, best = POINTS[study.kind]
    points = getattr(study, varied)
    distances = [FINAL[study.variant] * (1 + 0.2 * abs(point - best)) for point in points]
    path = {"path": "[[0.0, 0.0], [0.1, 0.8], [1.0, 1.0]]"} if study.kind == "error_field" else {}
    rows = [
        {VARIED[study.kind]: point, **path, "evaluations": 20, "samples": 1500, "sampler": "euler"}
        | {name: _value(name, distance) for name in number_names(params)}
        for point, distance in zip(points, distances, strict=True)
    ]
    pd.DataFrame(rows).to_csv(folder / TABLES[study.kind], index=False)
    if study.kind == "error_field":
        _write_picture(folder / "error_field.png", 4, 2)


def _write_trajectory(path: Path, delta_t: float, composite: bool, labels: np.ndarray[Any, Any]) -> None:
    schedule = Schedule.offset(delta_t)
    u = schedule.grid(FRAMES - 1)
    local = schedule.local_times(u)
    arrays: dict[str, Any] = {"u": u.numpy(), "t_tex": local.t_tex.numpy(), "t_sem": local.t_sem.numpy(), "labels": labels}
    arrays["phase"] = np.array([schedule.span(float(time)).phase.value for time in u])
    arrays["textures"] = np.stack([emblems(SAMPLES, float(t), k) for k, t in enumerate(local.t_tex)])
    if composite:
        small = torch.nn.functional.adaptive_avg_pool2d
        arrays["semantics"] = np.stack(
            [
                small(torch.from_numpy(emblems(SAMPLES, float(t), k)).float(), GRID).byte().numpy()
                for k, t in enumerate(local.t_sem)
            ]
        )
    np.savez_compressed(path, **arrays)


def _write_picture(path: Path, rows: int, columns: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tiles = emblems(rows * columns, 1.0).reshape(rows, columns, 3, RESOLUTION, RESOLUTION)
    picture = tiles.transpose(0, 3, 1, 4, 2).reshape(rows * RESOLUTION, columns * RESOLUTION, 3)
    Image.fromarray(picture).save(path)


def _numbers(params: Params, distance: float, samples: int = 1500) -> dict[str, Any]:
    protocol = PROTOCOL | {"samples": samples}
    return {name: {"value": _value(name, distance), "protocol": protocol} for name in number_names(params)}


def _value(name: str, distance: float) -> float:
    factor = 0.8 if name.endswith("lite0") else 1.0
    if name == "fid":
        return distance / 200
    if name.startswith("fd_"):
        return distance * factor
    return distance / 2e4 * factor if name.startswith("kid_") else 0.9 - distance / 4500


def _costs(steps: np.ndarray[Any, Any]) -> dict[str, Any]:
    return {"step": steps, "images_seen": steps * 64, "seconds": steps * 0.15, "flops": steps * 64 * 1.7e8, "samples": 500}


def _fd(distance: Any) -> dict[str, Any]:
    return {"fd_efficientnet_lite2": distance, "fd_efficientnet_lite0": distance * 0.8}
