"""A small project whose stages work for seconds and write checkpoints all the time."""

from pathlib import Path

import numpy as np
import yaml
from projects import Project, copy_pipeline, draw_images, tiny_values
from stage_runs import Stage

from sfd_core.data.store.shard_writer import ShardWriter
from sfd_core.data.store.shards import FieldSpec, ShardReader

TIMES = frozenset({"seconds", "images_per_second", "data_wait"})
VARIANT = ("--variant", "sfd")
TEXTURE_VAE = Stage("texture_vae", times=TIMES)
SEMANTIC_VAE = Stage("semantic_vae", times=TIMES)
ENCODE = Stage("encode")
TRAIN = Stage("train", VARIANT, TIMES)
EVALUATE = Stage("evaluate", VARIANT)
ALL = (Stage("prepare"), TEXTURE_VAE, Stage("features"), SEMANTIC_VAE, ENCODE, Stage("reference"), TRAIN, EVALUATE)

LONGER = {
    "texture_vae.optimisation": {"steps": 30, "checkpoint_every": 3},
    "semantic_vae.optimisation": {"steps": 100, "checkpoint_every": 5},
    "train.optimisation": {"steps": 18, "checkpoint_every": 2},
    "train": {"snapshots": 3},
    "evaluate": {"snapshot_samples": 12, "final_samples": 15},
    "evaluate.sampler": {"batch_size": 3},
}
MANY_IMAGES = {"train": 6_000, "held_out": 300}
"""Two pieces of the one part, and one of the other."""
BLOCK = 1000


def lay_out(path: Path) -> Project:
    """Lay out a project and run every stage but the report once, by its own command."""
    project = copy_pipeline(path)
    draw_images(project.path / "images")
    (project.path / "params.yaml").write_text(yaml.safe_dump(tiny_values(["sfd"]), sort_keys=False))
    longer = {f"{group}.{key}": value for group, values in LONGER.items() for key, value in values.items()}
    project.set({"studies": {}} | longer)
    for stage in ALL:
        stage.run(project)
    return project


def give_many_images(project: Project) -> None:
    """Repeat images and tokens so often that `encode` works for seconds; no two rows get the same sample of the posterior."""
    for part, count in MANY_IMAGES.items():
        prepared, features = (project.path / "outputs" / stage / part for stage in ("prepare", "features"))
        repeat(prepared, count, {})
        repeat(features, count, {"prepare": ShardReader(prepared).digest})


def repeat(shard: Path, count: int, changed: dict[str, str]) -> None:
    """Make `count` rows of those of a shard."""
    reader = ShardReader(shard)
    fields = {name: FieldSpec(str(field.dtype), field.shape[1:]) for name, field in reader.fields.items()}
    with ShardWriter(shard, fields, reader.meta | changed) as writer:
        for start in range(0, count, BLOCK):
            rows = np.arange(start, min(start + BLOCK, count)) % len(reader)
            writer.append(**{name: field.take(rows) for name, field in reader.fields.items()})
