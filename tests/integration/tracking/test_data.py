"""What a run was trained on, in a real store, as MLflow's users find it."""

from pathlib import Path

import pytest
from emoji import emoji
from prepared_images import ROWS, prepare_images

from sfd_core.data.store.shards import ShardReader
from sfd_core.experiment.params import PrepareParams
from sfd_core.tracking.datasets import prepared_images
from sfd_core.tracking.runs import RunSpec
from sfd_core.tracking.store import Store

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
FILES = PrepareParams.model_validate(
    emoji().prepare.model_dump()
    | {"source": "folder", "path": "images", "held_out_path": "others", "labels": "folder", "held_out": None, "copies": 1}
)
AVATARS = PrepareParams.model_validate(
    emoji().prepare.model_dump()
    | {"source": "avatars", "styles": ["critters", "micah"], "per_style": 9, "labels": "style", "copies": 1}
)


@pytest.mark.parametrize(("prepare", "source"), [(FILES, {"train": "images", "held_out": "others"}), (AVATARS, {})])
def test_the_images_of_a_run_are_data_sets_with_digest_number_and_source(
    embedded: Path, prepare: PrepareParams, source: dict[str, str]
) -> None:
    import mlflow  # noqa: PLC0415 - only the tests that run pay for it

    prepare_images()
    store = Store()
    run = store.create(RunSpec("sfd", {}, {}), {})
    found = prepared_images(prepare, Path("prepare"))
    for _ in range(2):
        store.send_data(run, found)
    inputs = {
        entry.dataset.name.rpartition("-")[2]: entry for entry in mlflow.MlflowClient().get_run(run).inputs.dataset_inputs
    }
    assert set(inputs) == set(ROWS)
    for part, rows in ROWS.items():
        entry = inputs[part]
        shard = ShardReader(Path("prepare") / part)
        assert shard.digest.startswith(entry.dataset.digest)
        assert f'"num_rows": {rows}' in entry.dataset.profile
        assert entry.tags[0].value == {"train": "training", "held_out": "validation"}[part]
        resolved = mlflow.data.get_source(entry)
        if source:
            assert resolved.uri == source[part]
        else:
            assert resolved.to_dict()["tags"]["per_style"] == "9"
    shown = store.run(run)
    assert [words.partition(",")[0] for words in sorted(shown.data)] == [
        f"{prepare.source}-64px-held_out: 7 images",
        f"{prepare.source}-64px-train: 26 images",
    ]


def test_the_licence_of_the_images_is_said(project: Path) -> None:
    prepare_images()
    assert {found.licence for found in prepared_images(FILES, Path("prepare"))} == {"that of the files in images"}
    assert {found.licence for found in prepared_images(AVATARS, Path("prepare"))} == {
        "CC BY 4.0 (micah) and CC0 1.0 (critters)"
    }
    assert {found.licence for found in prepared_images(emoji().prepare, Path("prepare"))} == {"CC BY 4.0 (Twemoji)"}
    assert prepared_images(FILES, Path("nowhere")) == []
