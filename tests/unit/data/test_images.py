from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfd_core.config import PrepareParams
from sfd_core.data.images import ImageSet, is_held_out, load_images, split
from sfd_core.errors import DataError


def params(**changes: object) -> PrepareParams:
    values = {
        "source": "twemoji", "path": None, "labels": "category", "resolution": 64, "copies": 1, "held_out": 0.2,
        "skip_unreadable": False, "seed": 0,
    }  # fmt: skip
    return PrepareParams.model_validate(values | changes)


def folder_params(path: Path, **changes: object) -> PrepareParams:
    return params(**({"source": "folder", "path": str(path), "labels": "folder", "resolution": 16} | changes))


def make_folder(root: Path, classes: dict[str, int]) -> Path:
    for label, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (20, 30), (label, number, 0)).save(root / name / f"{number}.png")
    return root


def images(names: list[str], labels: list[int]) -> ImageSet:
    return ImageSet(names, labels, sorted({str(label) for label in labels}), lambda index, copy: np.zeros((1, 1, 3), np.uint8))


def test_twemoji_by_category_and_by_subcategory() -> None:
    by_category, by_subcategory = load_images(params()), load_images(params(labels="subcategory"))
    assert (len(by_category.names), len(by_category.classes), len(by_subcategory.classes)) == (1898, 9, 99)
    assert by_category.names == by_subcategory.names
    assert by_category.classes[by_category.labels[by_category.names.index("1f1e9-1f1ea")]] == "Flags"
    assert by_subcategory.classes[by_subcategory.labels[by_subcategory.names.index("1f1e9-1f1ea")]] == "country-flag"


def test_a_twemoji_copy_differs_from_the_plain_image_and_is_reproducible() -> None:
    loaded = load_images(params())
    plain, copy = loaded.render(0, 0), loaded.render(0, 1)
    assert plain.shape == copy.shape == (64, 64, 3)
    assert (plain != copy).any()
    np.testing.assert_array_equal(copy, load_images(params()).render(0, 1))
    assert (copy != load_images(params(seed=1)).render(0, 1)).any()


def test_a_folder_is_listed_in_one_order_with_classes_by_folder(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data", {"cat": 2, "ant": 1})
    (root / "cat" / "deep").mkdir()
    Image.new("RGB", (16, 16)).save(root / "cat" / "deep" / "9.png")
    (root / "cat" / ".hidden").touch()
    (root / ".DS_Store").touch()
    loaded = load_images(folder_params(root))
    assert loaded.classes == ["ant", "cat"]
    assert loaded.names == ["ant/0.png", "cat/0.png", "cat/1.png", "cat/deep/9.png"]
    assert loaded.labels == [0, 1, 1, 1]
    assert tuple(loaded.render(2, 0)[0, 0]) == (0, 1, 0)


def test_listing_a_folder_reads_no_image(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data", {"cat": 2})
    (root / "cat" / "0.png").write_text("broken")
    loaded = load_images(folder_params(root))
    loaded.render(1, 0)
    with pytest.raises(DataError, match=r"cat/0\.png is not an image"):
        loaded.render(0, 0)


def test_files_have_no_second_rendering(tmp_path: Path) -> None:
    loaded = load_images(folder_params(make_folder(tmp_path / "data", {"cat": 1})))
    with pytest.raises(DataError, match=r"set prepare\.copies to 1"):
        loaded.render(0, 1)


def test_bad_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere is no folder"):
        load_images(folder_params(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty is empty"):
        load_images(folder_params(tmp_path / "empty"))
    root = make_folder(tmp_path / "data", {"cat": 2})
    (root / "dog").mkdir()
    with pytest.raises(DataError, match=r"class folder .*data/dog holds no file"):
        load_images(folder_params(root))
    (root / "dog").rmdir()
    (root / "stray.png").touch()
    with pytest.raises(DataError, match=r"holds the file 'stray.png' \(1 in all\) beside or instead of class folders"):
        load_images(folder_params(root))


def test_being_held_out_depends_on_name_and_seed_only() -> None:
    names = [f"image-{number}" for number in range(4000)]
    held_out = [is_held_out(name, 0.2, 0) for name in names]
    assert np.mean(held_out) == pytest.approx(0.2, abs=0.02)
    assert held_out != [is_held_out(name, 0.2, 1) for name in names]
    # A larger share holds out the same images and more.
    assert all(is_held_out(name, 0.4, 0) for name, away in zip(names, held_out, strict=True) if away)


def test_a_split_is_a_partition_that_new_images_do_not_disturb() -> None:
    names = [f"image-{number}" for number in range(500)]
    before, after = images(names, [0] * 500), images([*names, "new-1", "new-2"], [0] * 502)
    parts, later = split(before, 0.2, 0), split(after, 0.2, 0)
    assert sorted(parts.train + parts.held_out) == list(range(500))
    assert [index for index in later.held_out if index < 500] == parts.held_out


@pytest.mark.parametrize("seed", range(20))
def test_every_class_keeps_a_training_image(seed: int) -> None:
    labels = [number // 2 for number in range(40)]
    parts = split(images([f"image-{number}" for number in range(40)], labels), 0.8, seed)
    assert {labels[index] for index in parts.train} == set(labels)
    assert parts.held_out


def test_twemoji_by_subcategory_trains_every_class() -> None:
    loaded = load_images(params(labels="subcategory"))
    parts = split(loaded, 0.2, 0)
    assert len({loaded.labels[index] for index in parts.train}) == 99


def test_a_split_without_held_out_images_is_an_error() -> None:
    with pytest.raises(DataError, match=r"none of the 3 images is held out with prepare.held_out 0.2"):
        split(images(["a", "b", "c"], [0, 1, 2]), 0.2, 0)
