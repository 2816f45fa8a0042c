"""Numbers that papers published, as data: FID of 50,000 samples on ImageNet 256x256, no number of this project.

They stand beside one's own only where these are of the same kind (`comparable`); a distance in another feature space, of other
images or at another resolution is never shown with them. The files name for every number its source and whether it stands in a
table or was read off a figure.
"""

from importlib.resources import files

import pandas as pd

from sfd_core.experiment.params import Params, SamplerParams, VariantParams
from sfd_core.reporting.tables import Cell, Row, Table

FOLDER = files("sfd_core.reporting") / "published"
RESOLUTION, CLASSES, SAMPLES = 256, 1000, 50_000
NUMBER = "fid"
BATCH = 256
"""Images a step in all of these trainings."""
TEXTURE_VAE, ENCODER, LEARNING_RATE = "sd-vae-f16d32-50ep", "vit_base_patch14_reg4_dinov2.lvd142m", 1e-4
"""Of the published curves of LightningDiT and SFD, their long recipe."""
EVALUATIONS = 100
"""So many and more give the same FID."""
TABLE = "table"
"""The exactness of a number that stands in a paper's table."""


def same_reference(params: Params, classes: int) -> bool:
    """Whether the experiment's first number is FID against ADM's statistics, on a thousand classes at 256x256 pixels."""
    inception = params.reference.adm_npz is not None and params.reference.extractors[0] == "inception"
    return inception and params.prepare.resolution == RESOLUTION and classes == CLASSES


def sampled_otherwise(sampler: SamplerParams) -> str:
    """Say how sampling differs from that of the published curves; empty where it does not."""
    if sampler.guidance != "none":
        return f"guidance is {sampler.guidance}, the published curve has none"
    if sampler.delta_t is not None or sampler.path is not None:
        return "evaluate.sampler sets another order than the trained one, in which the published samples are drawn"
    if sampler.evaluations < EVALUATIONS and sampler.solver != "dopri5":
        return f"evaluations are {sampler.evaluations}, and fewer than {EVALUATIONS} raise FID (arXiv 2512.04926: 60 by 5 %)"
    return ""


def trained_otherwise(params: Params, variant: VariantParams) -> str:
    """Say what a variant's network or latents have in other ways than those of the published curves; empty if nothing."""
    semantics = variant.semantic != "none" or variant.repa.weight > 0
    found = {
        "texture_vae.name": (getattr(params.texture_vae, "name", params.texture_vae.kind), TEXTURE_VAE),
        "features.encoder": (params.features.encoder if semantics else ENCODER, ENCODER),
        "train.optimisation.optimizer": (params.train.optimisation.optimizer, "adamw"),
        "prediction": (variant.prediction, "velocity"),
    }
    return ", ".join(f"{key} is {own}, there {theirs}" for key, (own, theirs) in found.items() if own != theirs)


def comparable(params: Params, classes: int, samples: int) -> bool:
    """Whether numbers of so many samples are of the published protocol: not `sampled_otherwise`, and of 50,000 samples."""
    return not sampled_otherwise(params.evaluate.sampler) and samples == SAMPLES and same_reference(params, classes)


def read_published(name: str) -> pd.DataFrame:
    """Return `convergence`, `guided` or `ablations`, one row a number, with columns `fid`, `source` and `exactness`."""
    with (FOLDER / f"{name}.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file, dtype={"setting": str})


def curves() -> dict[str, pd.DataFrame]:
    """Return by model the published unguided curves of more than one point, with `step`, `images_seen` and `fid`."""
    table = read_published("convergence")
    table["images_seen"] = table["step"] * BATCH
    groups = {str(model): rows.sort_values("step") for model, rows in table.groupby("model", sort=False)}
    return {model: rows for model, rows in groups.items() if len(rows) > 1}


def offset_curve() -> pd.DataFrame:
    """Return the published ablation of the offset: `delta_t` and `fid` at 400,000 steps, unguided."""
    table = read_published("ablations")
    chosen = table[table["ablation"] == "delta_t"]
    return chosen.assign(delta_t=chosen["setting"].astype(float))


def published_tables() -> list[Table]:
    """Lay out everything that was published, each table marked as such."""
    unguided, guided = read_published("convergence"), read_published("guided")
    return [
        _by_step("Published: unguided, by training step", unguided),
        _by_step("Published: AutoGuidance, by training step", guided),
        _ablations(),
    ]


def _by_step(caption: str, table: pd.DataFrame) -> Table:
    steps = sorted(set(table["step"]))
    rows = []
    for model, points in table.groupby("model", sort=False):
        at = dict(zip(points["step"].tolist(), _cells(points), strict=True))
        rows.append(Row(f"published: {model}", [at.get(step, Cell("-")) for step in steps], reference=True))
    return Table(caption, _note(table), groups=[], columns=[_short(step) for step in steps], rows=rows)


def _ablations() -> Table:
    table = read_published("ablations")
    titles = [f"{ablation}: {setting}" for ablation, setting in zip(table["ablation"], table["setting"], strict=True)]
    rows = [Row(title, [cell], reference=True) for title, cell in zip(titles, _cells(table), strict=True)]
    note = f"XL at 400,000 steps, unguided unless said; the default is 3.03. {_note(table)}"
    return Table("Published: ablations", note, groups=[], columns=["FID"], rows=rows)


def _note(table: pd.DataFrame) -> str:
    sources = ", ".join(dict.fromkeys(table["source"]))
    return (
        f"FID of {SAMPLES:,} samples, ImageNet 256x256, not measured here; sources: {sources}. ≈: read off a figure, about 2 %."
    )


def _cells(table: pd.DataFrame) -> list[Cell]:
    numbers = zip(table["fid"].tolist(), (table["exactness"] == TABLE).tolist(), strict=True)
    return [Cell(f"{fid:g}" if exact else f"≈ {fid:g}") for fid, exact in numbers]


def _short(step: int) -> str:
    return f"{step // 1_000_000}M" if step % 1_000_000 == 0 else f"{step // 1000}K"
