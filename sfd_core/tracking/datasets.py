"""The images of a run as data sets of MLflow: what was trained on and what was held out."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sfd_core.data.store.shards import MANIFEST, read_manifest
from sfd_core.experiment.params import PrepareParams

CONTEXTS = {"train": "training", "held_out": "validation"}
"""Part of `outputs/prepare` -> what MLflow calls its use."""


@dataclass(frozen=True)
class DataSet:
    """One part of the images."""

    name: str
    context: str
    """`training` or `validation`."""
    digest: str
    """Of the shard."""
    images: int
    classes: int
    path: str | None
    """Where the files are; None for images that are drawn."""
    drawn: Mapping[str, str]
    """How they are drawn; empty for files."""
    licence: str


def prepared_images(prepare: PrepareParams, folder: Path) -> list[DataSet]:
    """Describe the parts of the images in `folder` (`outputs/prepare`); a part that is not there is left out."""
    parts = [part for part in CONTEXTS if (folder / part / MANIFEST).is_file()]
    return [_part(prepare, folder / part) for part in parts]


def _part(prepare: PrepareParams, shard: Path) -> DataSet:
    manifest, text = read_manifest(shard)
    values = prepare.model_dump(mode="json", include={"source", "styles", "per_style", "labels", "copies", "seed"})
    own = prepare.held_out_path if shard.name == "held_out" else None
    return DataSet(
        name=f"{prepare.source}-{prepare.resolution}px-{shard.name}",
        context=CONTEXTS[shard.name],
        digest=hashlib.sha256(text).hexdigest(),
        images=manifest["length"],
        classes=len(manifest["meta"]["classes"]),
        path=own or prepare.path,
        drawn={} if prepare.path else {name: str(value) for name, value in values.items() if value is not None},
        licence=_licence(prepare),
    )


def _licence(prepare: PrepareParams) -> str:
    if prepare.source == "twemoji":
        return "CC BY 4.0 (Twemoji)"
    if prepare.styles is None:
        return f"that of the files in {prepare.path}"
    from sfd_core.data.sources.avatars import list_styles

    known = list_styles()
    licences = sorted({known[style] for style in prepare.styles if style in known})
    return " and ".join(f"{name} ({', '.join(s for s in prepare.styles if known.get(s) == name)})" for name in licences)
