"""Reads what other stages wrote under `outputs/`. Required parts raise `DataError`; optional parts are named in `missing`.

Legend: S snapshots, N images, T time steps of one denoising run, R side of an image, g side of the latent grid.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sfd_core.evaluation.convergence import read_curve
from sfd_core.experiment.inputs import all_recorded_digests
from sfd_core.experiment.numbers import number_name
from sfd_core.experiment.params import Params, SamplerParams, VariantParams
from sfd_core.experiment.paths import with_found_path
from sfd_core.host.errors import DataError
from sfd_core.reporting.pictures import Pixels
from sfd_core.reporting.protocol import PROTOCOL, measured_with, recipe
from sfd_core.tracking.runs import holds_numbers_of, is_of

COSTS = ("step", "images_seen", "seconds", "flops")
REFERENCES = {
    "ceiling": "VAE reconstructions (ceiling)",
    "floor": "held-out images (floor)",
    "train_subset": "training images themselves",
}
"""Real images beside the variants: the least a perfect denoiser reaches through the VAE, unseen images, and the reference."""
STUDIES = {
    "learning_rates": ("make learning-rates", ("variant", "learning_rate", "seed")),
    "seeds": ("make seeds", ("variant", "learning_rate", "seed")),
    "offsets": ("make seeds", ("study", "variant", "seed", "delta_t")),
    "long": ("make repro-long", ("variant", *COSTS, "samples")),
    "guided": ("make guided", ("study", "variant", "seed", "scale")),
}
"""Committed tables that no stage repeats: which command writes them, and their columns beside numbers and `PROTOCOL`."""
OF_PRESENT_TRAININGS = frozenset({"seeds", "offsets", "guided"})
"""Those of `STUDIES` whose trainings differ from those of the variants in nothing but the seed."""

CLASS_COLUMNS = ["class", "real", "samples", "recognised"]
"""As `evaluation.classes` writes them; importing it would take seconds."""
TABLES = {"offsets": "offsets.csv", "corners": "corners.csv", "error_field": "error_field.csv", "guidance": "curve.csv"}
VARIED = {"offsets": "delta_t", "corners": "t_tex", "error_field": "semantic_weight", "guidance": "scale"}
"""File of a study's table and the column that it varies, by kind."""
KEPT = frozenset({*VARIED.values(), "t_sem", "path", "evaluations", "samples"})
MAPS = ("corners", "error_field")
"""Kinds of studies with a figure of their own."""


@dataclass(frozen=True)
class Number:
    """A measured value and the protocol it was measured by."""

    value: float
    protocol: Mapping[str, Any]


Numbers = Mapping[str, Number]


@dataclass(frozen=True)
class Grids:
    """Samples of the same seeds at every snapshot."""

    images: Pixels
    """(S, N, 3, R, R)"""
    steps: NDArray[np.int64]
    """(S,)"""
    labels: NDArray[np.int64]
    """(N,) class indices."""


@dataclass(frozen=True)
class Trajectory:
    """One denoising run: what the model predicts as the final image, over global time."""

    u: NDArray[np.float64]
    """(T,) global time."""
    textures: Pixels
    """(T, N, 3, R, R) decoded texture."""
    semantics: Pixels | None
    """(T, N, 3, g, g) semantic latent, its three principal components as colours; None for texture-only variants."""
    labels: NDArray[np.int64] | None
    """(N,) class indices."""


@dataclass(frozen=True)
class VariantOutputs:
    """All that is known of one variant."""

    name: str
    params: VariantParams
    sampler: SamplerParams
    """How it was sampled."""
    curve: pd.DataFrame
    """Steps, samples and one column per number, one row per snapshot, by step."""
    numbers: Numbers
    """Final numbers."""
    oracle: Numbers
    """Numbers with real semantic latents, for as many samples as the curve's; empty where that was not asked for."""
    history: pd.DataFrame | None
    grids: Grids | None
    trajectory: Trajectory | None
    neighbours: Path | None
    classes: pd.DataFrame | None
    """`CLASS_COLUMNS`, one row per class."""
    class_sizes: list[int]
    """Training images of each class; empty for a denoiser without labels."""

    @property
    def cost(self) -> Mapping[str, float]:
        """Step, images seen, seconds and FLOPs of the last snapshot."""
        return {name: float(self.curve[name].iloc[-1]) for name in COSTS}

    @property
    def samples(self) -> int | None:
        """How many samples the final numbers are of, if their protocol says so."""
        return sample_count(self.numbers)


@dataclass(frozen=True)
class Outputs:
    """All that the report shows."""

    variants: Mapping[str, VariantOutputs]
    classes: list[str]
    references: Mapping[str, Numbers]
    """Numbers of real images, for as many images as the final numbers, by kind (`REFERENCES`), or by `KIND of RUN` where two
    runs differ; absent kinds are left out."""
    snapshot_references: Mapping[str, Numbers]
    """The same for as many images as the curves' snapshots."""
    vae_histories: Mapping[str, pd.DataFrame]
    reconstructions: Path | None
    training_images: int | None
    studies: Mapping[str, pd.DataFrame]
    """Those of `STUDIES` that are there and were measured with the same latents and evaluation, and trainings if they are of
    the present ones."""
    curves: pd.DataFrame
    """The points of all studies of this run: `study`, `variant`, `seed`, what was varied, and the numbers.

    `origin` is the same for variants that differ in nothing but the seed."""
    order_maps: Mapping[str, Path]
    """The figures of studies of kinds `MAPS`, by study."""
    missing: Mapping[str, str]
    """Absent optional part -> which file is missing and how to get it."""

    def final_values(self, number: str) -> dict[str, float]:
        """Return the final value of one number for every variant that has it."""
        return {name: variant.numbers[number].value for name, variant in self.variants.items() if number in variant.numbers}

    def reference_titles(self) -> dict[str, str]:
        """Return what kinds of real images are called, with how many there are where fewer than samples of a variant."""
        samples = max(filter(None, (variant.samples for variant in self.variants.values())), default=None)
        return {name: count_added(reference_title(name), numbers, samples) for name, numbers in self.references.items()}

    def points(self, kind: str) -> pd.DataFrame:
        """Return the points of all studies of this kind, with the columns that it has."""
        return self.curves[self.curves["kind"] == kind].dropna(axis="columns", how="all")

    def number_names(self) -> list[str]:
        """Return every number that some variant has, in the order of the files."""
        return list(dict.fromkeys(name for variant in self.variants.values() for name in variant.numbers))


def values_of(numbers: Numbers) -> dict[str, float]:
    """Return the values by name, without their protocols."""
    return {name: number.value for name, number in numbers.items()}


def sample_count(numbers: Numbers) -> int | None:
    """Return how many images `numbers` are of, if their protocol says so."""
    return next((int(number.protocol["samples"]) for number in numbers.values() if "samples" in number.protocol), None)


def reference_title(name: str) -> str:
    """Return what real images are called, given their name in `Outputs.references`."""
    kind, *of = name.split(" ", 1)
    return " ".join([REFERENCES[kind], *of])


def count_added(title: str, numbers: Numbers, samples: int | None, unit: str = "images") -> str:
    """Return `title`, with how many images `numbers` are of where that is not `samples`."""
    count = sample_count(numbers)
    return title if count in {None, samples} else f"{title}, {count} {unit}"


def class_names(labels: NDArray[np.int64], classes: list[str]) -> list[str]:
    """Return the name of every class index; empty where the denoisers saw no labels."""
    if not classes:
        return [""] * len(labels)
    return [classes[label] if label < len(classes) else f"class {label}" for label in labels]


def read_outputs(params: Params, outputs: Path, results: Path) -> Outputs:
    """Read the outputs of all active variants under `outputs` and the committed tables under `results`.

    Raises `DataError` if an active variant was not evaluated or a file is not what it should be.
    """
    missing: dict[str, str] = {}
    variants = {name: _read_variant(params, outputs, name, missing) for name in params.active}
    vae = outputs / "texture_vae"
    reference = _optional(outputs / "reference" / "metrics.json", "reference", "dvc repro reference", missing)
    curves = _curves(params, outputs, missing)
    real = require_json(reference) if reference else {}
    return Outputs(
        variants=variants,
        classes=_classes(outputs, params.active),
        references=_references(real, reference),
        snapshot_references=_references(real.get("snapshot", {}), reference),
        vae_histories={
            stage: read_table(path, ["step"])
            for stage in ("texture_vae", "semantic_vae")
            if (path := _optional(outputs / stage / "history.csv", f"history.{stage}", f"dvc repro {stage}", missing))
        },
        reconstructions=_optional(vae / "reconstructions.png", "reconstructions", "dvc repro texture_vae", missing),
        training_images=_training_images(outputs / "prepare" / "metrics.json", missing),
        studies=_studies(params, all_recorded_digests(outputs.parent), results, missing),
        curves=curves,
        order_maps={
            name: file
            for name, study in params.active_studies().items()
            if study.kind in MAPS
            and name in set(curves["study"])
            and (file := outputs / "studies" / study.variant / name / f"{study.kind}.png").is_file()
        },
        missing=missing,
    )


def _read_variant(params: Params, outputs: Path, name: str, missing: dict[str, str]) -> VariantOutputs:
    folder, remedy = outputs / "evaluate" / name, f"dvc repro evaluate@{name}"
    for file in ("curve.csv", "numbers.json"):
        if not (folder / file).is_file():
            raise DataError(f"active variant {name!r} has no {folder / file}; run `{remedy}` or take it out of `active`")
    curve = read_curve(outputs, name)
    measured = require_json(folder / "numbers.json")
    if not is_of(folder, outputs / "train" / name):
        raise DataError(f"{folder} is of older weights: {name!r} was evaluated before it was trained again; run `{remedy}`")
    numbers = _numbers(measured.get("final"), folder / "numbers.json")
    if not numbers:
        raise DataError(f"{folder} holds no final number; delete the folder and run `{remedy}`")
    variant = with_found_path(params.variants[name], outputs / "schedule")
    classes = _optional(folder / "classes.csv", f"classes.{name}", remedy, missing)
    history = _optional(outputs / "train" / name / "history.csv", f"history.{name}", f"dvc repro train@{name}", missing)
    grids = _optional(folder / "samples.npz", f"grids.{name}", remedy, missing)
    trajectory = _optional(folder / "trajectory.npz", f"trajectory.{name}", remedy, missing)
    return VariantOutputs(
        name=name,
        params=variant,
        sampler=params.evaluate.sampler,
        curve=curve,
        numbers=numbers,
        oracle=_numbers(measured.get("oracle", {}), folder / "numbers.json"),
        history=read_table(history, ["step", "images_seen"]) if history else None,
        grids=_read_grids(grids) if grids else None,
        trajectory=_read_trajectory(trajectory) if trajectory else None,
        neighbours=_optional(folder / "neighbours.png", f"neighbours.{name}", remedy, missing),
        classes=read_table(classes, CLASS_COLUMNS) if classes else None,
        class_sizes=_class_sizes(outputs / "prepare" / "metrics.json") if _classes(outputs, [name]) else [],
    )


def _read_grids(path: Path) -> Grids:
    arrays = _read_arrays(path, ("images", "steps", "labels"))
    images, steps, labels = arrays["images"], arrays["steps"], arrays["labels"]
    if images.ndim != 5 or images.dtype != np.uint8 or images.shape[:2] != (len(steps), len(labels)):
        wanted = f"uint8 (snapshots {len(steps)}, labels {len(labels)}, 3, R, R)"
        raise DataError(f"{path}: images {images.shape} {images.dtype} are not {wanted}; run the evaluate stage again")
    return Grids(images, steps.astype(np.int64), labels.astype(np.int64))


def _read_trajectory(path: Path) -> Trajectory:
    arrays = _read_arrays(path, ("u", "textures"))
    u, textures, semantics = arrays["u"].astype(np.float64), arrays["textures"], arrays.get("semantics")
    if textures.ndim != 5 or textures.dtype != np.uint8 or len(textures) != len(u):
        raise DataError(
            f"{path}: textures {textures.shape} {textures.dtype} are not uint8 ({len(u)}, N, 3, R, R); evaluate again"
        )
    shown = semantics if semantics is not None and semantics.size else None
    if shown is not None and (shown.shape[:2] != textures.shape[:2] or shown.dtype != np.uint8):
        raise DataError(f"{path}: semantics {shown.shape} {shown.dtype} do not fit textures {textures.shape}; evaluate again")
    return Trajectory(u, textures, shown, arrays.get("labels"))


def _read_arrays(path: Path, required: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is no readable archive of arrays ({error}); run the evaluate stage again") from error
    absent = [name for name in required if name not in arrays]
    if absent:
        raise DataError(f"{path} lacks the arrays {', '.join(absent)}; run the evaluate stage again")
    return arrays


def read_table(path: Path, required: Sequence[str], remedy: str = "run its stage again") -> pd.DataFrame:
    """Read a CSV table; names of classes, studies and variants, and hashes, stay text: one may be `NA` or `01`.

    Raises `DataError`, which names a `remedy`, if it cannot be read or lacks a column.
    """
    texts = dict.fromkeys(("class", "study", "variant", *PROTOCOL), str)
    try:
        table = pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no readable table ({error}); {remedy}") from error
    if absent := [name for name in required if name not in table]:
        raise DataError(f"{path} lacks the columns {', '.join(absent)}; {remedy}")
    return table


def require_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raises `DataError` if there is none."""
    try:
        loaded = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no readable JSON ({error}); run its stage again") from error
    if not isinstance(loaded, dict):
        raise DataError(f"{path} holds no JSON object; run its stage again")
    return loaded


def _references(stored: Mapping[str, Any], path: Path | None) -> dict[str, Numbers]:
    return {kind: _numbers(stored[kind], path) for kind in REFERENCES if stored.get(kind)}


def _numbers(stored: Any, path: Path | None) -> dict[str, Number]:
    try:
        named = {name: entry for name, entry in stored.items() if number_name(name) is not None}
        return {name: Number(float(entry["value"]), dict(entry["protocol"])) for name, entry in named.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: numbers must be objects with value and protocol ({error!r}); run its stage again") from error


def _classes(outputs: Path, active: list[str]) -> list[str]:
    for name in active:
        path = outputs / "train" / name / "model.json"
        if path.is_file():
            return [str(label) for label in require_json(path).get("classes", [])]
    return []


def _class_sizes(metrics: Path) -> list[int]:
    return list(require_json(metrics)["per_class"]["train"].values()) if metrics.is_file() else []


def prepared_classes(outputs: Path) -> int:
    """Return of how many classes the prepared images are; 0 if none are prepared. Raises `DataError` for a damaged file."""
    metrics = outputs / "prepare" / "metrics.json"
    return int(require_json(metrics).get("classes", 0)) if metrics.is_file() else 0


def _training_images(metrics: Path, missing: dict[str, str]) -> int | None:
    return int(require_json(metrics)["images"]["train"]) if _optional(metrics, "epochs", "dvc repro prepare", missing) else None


def _studies(params: Params, inputs: Mapping[str, str], results: Path, missing: dict[str, str]) -> dict[str, pd.DataFrame]:
    """Return the committed tables that are those of the present parameters and input files."""
    wanted, found = measured_with(params, inputs), {}
    for study, (remedy, columns) in STUDIES.items():
        if path := _optional(results / f"{study}.csv", study, remedy, missing):
            table, trainings = read_table(path, columns), study in OF_PRESENT_TRAININGS
            same = all(key in table and set(table[key]) == {value} for key, value in wanted.items())
            if same and (not trainings or _is_of_trainings(table, params)):
                found[study] = table.drop(columns=PROTOCOL, errors="ignore")
            else:
                missing[study] = (
                    f"{path} is not shown, as it does not record the present parameters and input files of the latents and of "
                    f"the evaluation{', and the present trainings' if trainings else ''}; `{remedy}` measures it again"
                )
    return found


def _is_of_trainings(table: pd.DataFrame, params: Params) -> bool:
    """Return whether all rows are of present variants as they are trained now, but for the seed."""
    if "recipe" not in table:
        return False
    rows = table[["variant", "seed", "recipe"]].drop_duplicates().itertuples(index=False)
    return all(
        name in params.variants and recipe(params, params.variants[name].model_copy(update={"seed": int(seed)})) == trained
        for name, seed, trained in rows
    )


def _curves(params: Params, outputs: Path, missing: dict[str, str]) -> pd.DataFrame:
    """Return the points of all studies as one table, each with the study that it belongs to."""
    tables = []
    for name, study in params.active_studies().items():
        path = outputs / "studies" / study.variant / name / TABLES[study.kind]
        if _optional(path, f"studies.{name}", "dvc repro studies", missing):
            table = read_table(path, [VARIED[study.kind], "samples"])
            points = (path.parent / "points" / file for file in table.get("file", []))
            if not all(holds_numbers_of(file, outputs / "train" / study.variant) for file in points):
                missing[f"studies.{name}"] = (
                    f"{path} is not shown, as it is of older weights: {study.variant} was trained again since; "
                    f"`dvc repro studies@{study.variant}` measures it again"
                )
                continue
            kept = [column for column in table if column in KEPT or number_name(str(column)) is not None]
            about = {"study": name, "variant": study.variant, "seed": params.variants[study.variant].seed}
            about["origin"] = _origin(params, study.variant)
            about |= study.model_dump(exclude={"variant", "offsets", "times", "scales", "semantic_weights"})
            tables.append(pd.DataFrame(about, index=table.index).join(table[kept]))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["study", "kind"])


def _origin(params: Params, variant: str) -> str:
    """Return the first variant that differs from this one in nothing but the seed, or this one."""
    own = params.variants[variant]
    return next(name for name, other in params.variants.items() if other.model_copy(update={"seed": own.seed}) == own)


def _optional(path: Path, part: str, remedy: str, missing: dict[str, str]) -> Path | None:
    if path.is_file():
        return path
    missing[part] = f"{path} does not exist; `{remedy}` writes it"
    return None
