"""Writes the report folder: `index.html` (one file that asks for nothing else), the final table, and figures."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml

from sfd_core.diffusion.schedule import Schedule
from sfd_core.evaluation.convergence import Reach
from sfd_core.experiment.numbers import KINDS, extractor_title, frechet_distances, number_name
from sfd_core.experiment.params import Params
from sfd_core.host.paths import atomic_dir, write_json
from sfd_core.reporting import figures, published_numbers, studies, tables, text
from sfd_core.reporting.palette import VariantStyle, variant_styles
from sfd_core.reporting.payload import NO_TERMS, build_payload
from sfd_core.reporting.phases import bands, describe, leading, phases_svg, training_shares
from sfd_core.reporting.pictures import file_uri
from sfd_core.reporting.sources import Number, Outputs, class_names, values_of
from sfd_core.reporting.tables import Table

PAGE = files("sfd_core.reporting") / "page"
SCRIPTS = ("chart.js", "curves.js", "samples.js", "page.js")
LAST_TERMS = frozenset({"gradient_norm", "learning_rate", "images_per_second"})
"""Columns of a training curve that are no part of the loss; they are drawn last."""


@dataclass(frozen=True)
class Tile:
    """One variant's headline: its distance and a bar relative to the worst."""

    variant: str
    says: str
    value: str
    share: float
    best: bool
    """Lowest, by more than seeds differ."""


def write_report(params: Params, outputs: Outputs, reaches: Sequence[Reach], out: Path) -> Path:
    """Write the report of `outputs` to the folder `out`, replacing it whole, and return the path of its page.

    `reaches` are the rows of the speed-up table.
    """
    styles = variant_styles(list(outputs.variants))
    with atomic_dir(out) as folder:
        figures.write_figures(params, outputs, styles, folder)
        write_json(folder / "metrics.json", tables.flat_numbers(outputs))
        results_table(outputs).to_csv(folder / "results.csv", index=False)
        (folder / "index.html").write_text(render_page(params, outputs, reaches, styles, folder), encoding="utf-8")
    return out / "index.html"


def results_table(outputs: Outputs) -> pd.DataFrame:
    """Return one row per variant: cost of training and every final number."""
    rows = [
        {"variant": name, **variant.cost, "samples": variant.samples, **values_of(variant.numbers)}
        for name, variant in outputs.variants.items()
    ]
    return pd.DataFrame(rows)


def render_page(
    params: Params, outputs: Outputs, reaches: Sequence[Reach], styles: dict[str, VariantStyle], folder: Path
) -> str:
    """Render the page as one HTML document with styles, scripts, data and pictures inside, those of `folder` too."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((PAGE / "index.html.jinja").read_text(encoding="utf-8"))
    encoder = params.features.encoder
    primary = tables.primary_number(outputs, encoder)
    spread = studies.seed_spread(outputs, primary.name)
    payload = build_payload(params, outputs, styles, params.report.grid_images)
    return template.render(
        title=params.report.title,
        params=params,
        missing=outputs.missing,
        colours={name: f"var(--v{index})" for index, name in enumerate(outputs.variants)},
        style=(PAGE / "style.css").read_text(encoding="utf-8") + _variant_rules(styles),
        scripts="\n".join((PAGE / script).read_text(encoding="utf-8") for script in SCRIPTS),
        payload=json.dumps(payload, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        tiles=_tiles(outputs, primary.name, spread),
        primary=primary,
        finding=tables.finding(outputs, primary, encoder, spread),
        result=tables.result_table(outputs),
        speed=tables.speed_tables(reaches, outputs),
        epochs=tables.epoch_table(outputs, primary),
        measures=[(kind, KINDS[kind]) for kind in payload["measures"]],
        evaluators=_evaluators(payload["measures"]),
        samples=_samples(params, outputs),
        runs=[name for name in reversed(params.active) if name in payload["trajectories"]],
        neighbours={name: file_uri(variant.neighbours) for name, variant in outputs.variants.items() if variant.neighbours},
        reconstructions=file_uri(outputs.reconstructions) if outputs.reconstructions else None,
        schedule=_schedule(outputs),
        terms=_terms(outputs),
        studies=_studies(outputs),
        curves=_curves(outputs, primary.name, folder),
        order_maps=[
            (figure.stem, file_uri(figure), studies.order_table(outputs.curves[outputs.curves["study"] == name], primary.name))
            for name, figure in outputs.order_maps.items()
        ],
        classes=studies.class_shares(outputs),
        published=published_numbers.published_tables() if "offsets" in payload["published"] else [],
        published_curves="curves" in payload["published"],
        protocols=_protocols(outputs),
        parameters=yaml.safe_dump(params.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        text=text,
        number_name=number_name,
        extractor_title=extractor_title,
    )


def _variant_rules(styles: dict[str, VariantStyle]) -> str:
    light = ";".join(f"--v{index}:{style.light}" for index, style in enumerate(styles.values()))
    dark = ";".join(f"--v{index}:{style.dark}" for index, style in enumerate(styles.values()))
    return f":root{{{light}}}:root[data-theme=dark]{{{dark}}}"


def _tiles(outputs: Outputs, number: str, spread: float) -> list[Tile]:
    values = outputs.final_values(number)
    worst, level = max(values.values()), tables.level_with_best(values, spread)
    best = set() if len(level) > 1 else level
    says = {name: describe(outputs.variants[name].params, outputs.variants[name].sampler) for name in values}
    return [Tile(name, says[name], text.number(value), value / worst, name in best) for name, value in values.items()]


def _evaluators(measures: dict[str, dict[str, str]]) -> list[tuple[str, str]]:
    extractors = dict.fromkeys(extractor for names in measures.values() for extractor in names)
    return [(extractor, extractor_title(extractor)) for extractor in extractors]


def _samples(params: Params, outputs: Outputs) -> dict[str, Any] | None:
    grids = {name: variant.grids for name, variant in outputs.variants.items() if variant.grids is not None}
    if not grids:
        return None
    labels = next(iter(grids.values())).labels[: params.report.grid_images]
    return {
        "variants": list(grids),
        "count": len(labels),
        "labels": class_names(labels, outputs.classes),
        "snapshots": max(len(grid.steps) for grid in grids.values()),
    }


def _schedule(outputs: Outputs) -> dict[str, Any] | None:
    """Return how the variant that shows it best was sampled; None if none has semantics."""
    shown = leading(outputs.variants.values())
    if shown is None:
        return None
    schedule, shares = Schedule.of(shown.params, shown.sampler), training_shares(shown)
    return {
        "variant": shown.name,
        "semantic": schedule.interval(semantic=True),
        "texture": schedule.interval(semantic=False),
        "bands": bands(schedule),
        "shares": shares,
        "figure": phases_svg(schedule, shares),
    }


def _terms(outputs: Outputs) -> dict[str, list[str]]:
    denoisers = [variant.history for variant in outputs.variants.values() if variant.history is not None]
    groups = {"denoisers": denoisers, **{stage: [table] for stage, table in outputs.vae_histories.items() if len(table)}}

    def terms(histories: list[pd.DataFrame]) -> list[str]:
        # a term that is zero throughout is switched off
        columns = dict.fromkeys(str(column) for table in histories for column in table.columns if table[column].any())
        return sorted((column for column in columns if column not in NO_TERMS), key=LAST_TERMS.__contains__)

    return {group: terms(histories) for group, histories in groups.items() if histories}


def _studies(outputs: Outputs) -> dict[str, Any]:
    """Return by study, then by distance, what the page shows of it, and `samples`; nothing of a study that is not there."""

    def by_distance(study: str, lay_out: Callable[[pd.DataFrame, str], Any]) -> dict[str, Any]:
        table = outputs.studies.get(study, pd.DataFrame())
        return {number.name: lay_out(table, number.name) for number in frechet_distances(table.columns)}

    return {
        "rates": by_distance("learning_rates", studies.learning_rate_table),
        "seeds": by_distance("seeds", studies.seed_table),
        "long": by_distance("long", studies.final_values),
        "guided": by_distance("guided", studies.guided_table),
        "samples": {
            study: studies.samples_told(outputs.studies.get(study, pd.DataFrame())) for study in ("learning_rates", "seeds")
        },
    }


def _curves(outputs: Outputs, primary: str, folder: Path) -> dict[str, tuple[str, Table]]:
    """Return the figure and the table of offsets and of guidance, where there are any."""
    layouts = {"offsets": studies.offset_table, "guidance": studies.guided_table}
    tables = {kind: outputs.points(kind) for kind in layouts}
    found = {
        kind: (file_uri(folder / f"{kind}.png"), layouts[kind](table, primary)) for kind, table in tables.items() if len(table)
    }
    stored = outputs.studies.get("offsets")
    if stored is not None and primary in stored:
        name = figures.OFFSETS_OF_SEEDS
        found[name] = (file_uri(folder / f"{name}.png"), studies.offset_table(stored, primary))
    return found


def _protocols(outputs: Outputs) -> dict[str, list[dict[str, Any]]]:
    groups = {name: variant.numbers for name, variant in outputs.variants.items()}
    titles = outputs.reference_titles()
    groups |= {tables.oracle_title(variant): variant.oracle for variant in outputs.variants.values()}
    groups |= {titles[kind]: numbers for kind, numbers in outputs.references.items()}

    def entry(name: str, number: Number) -> dict[str, Any]:
        lines = {key: _plain(value) for key, value in number.protocol.items() if value is not None}
        return {"name": name, "value": text.number(number.value), "protocol": lines}

    return {group: [entry(name, number) for name, number in numbers.items()] for group, numbers in groups.items() if numbers}


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    return ", ".join(map(_plain, value)) if isinstance(value, list | tuple) else str(value)
