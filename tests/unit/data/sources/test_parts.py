import errno
import os
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
from archives import encoded, samples, write_parquet, write_tar
from PIL import Image

from sfd_core.data.sources.image_set import ImageSet
from sfd_core.data.sources.parts import is_held_out, load_images, load_parts, split
from sfd_core.experiment.params import PrepareParams
from sfd_core.host.errors import DataError


def params(**changes: object) -> PrepareParams:
    values = {
        "source": "twemoji", "path": None, "held_out_path": None, "labels": "category", "resolution": 64, "copies": 1,
        "held_out": 0.2, "skip_unreadable": False, "seed": 0,
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
    classes = sorted({str(label) for label in labels})
    return ImageSet(names, labels, classes, lambda index, copy: np.zeros((1, 1, 3), np.uint8), str)


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


def test_links_are_followed_but_never_in_a_circle(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data", {"cat": 1})
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "elsewhere" / "5.png")
    (root / "cat" / "linked").symlink_to(tmp_path / "elsewhere")
    assert load_images(folder_params(root)).names == ["cat/0.png", "cat/linked/5.png"]
    (tmp_path / "elsewhere" / "back").symlink_to(root / "cat")
    with pytest.raises(DataError, match=r"cat/linked/back is a link to a folder that holds it"):
        load_images(folder_params(root))


def test_odd_names_and_class_folders_that_are_links_work(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data", {'a "b"': 1, "it's": 1, "[x]*": 1})
    Image.new("RGB", (16, 16)).save(root / "[x]*" / "line\nbreak, 'quoted' \"twice\" $HOME.png")
    make_folder(tmp_path / "elsewhere", {"real": 1})
    (root / "linked").symlink_to(tmp_path / "elsewhere" / "real")
    loaded = load_images(folder_params(root))
    assert loaded.classes == ["[x]*", 'a "b"', "it's", "linked"]
    assert len(loaded.names) == 5
    assert [loaded.render(index, 0).shape for index in range(5)] == [(16, 16, 3)] * 5
    assert len(loaded.digest()) == 64


@pytest.mark.parametrize("name", ["a\nb", "a\tb", "a\x7fb"])
def test_a_class_whose_name_breaks_a_line_is_refused_in_one(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="holds control characters") as caught:
        load_images(folder_params(make_folder(tmp_path / "data", {"cat": 1, name: 1})))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["link", "pipe", "socket"])
def test_what_is_no_file_is_named(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder(tmp_path / "data", {"cat": 1})
    monkeypatch.chdir(root / "cat")
    if kind == "link":
        Path("odd.png").symlink_to("nowhere.png")
    elif kind == "pipe":
        os.mkfifo("odd.png")
    else:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind("odd.png")
    said = "a broken link" if kind == "link" else "a pipe, a socket or a device"
    with pytest.raises(DataError, match=rf"cat/odd\.png is {said} instead of a file"):
        load_images(folder_params(root))


def test_a_folder_that_cannot_be_read_is_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder(tmp_path / "data", {"cat": 1, "dog": 1})
    listed = os.scandir

    def refusing(path: Path) -> object:
        if path == root / "dog":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refusing)  # root may read everything
    with pytest.raises(DataError, match=r"dog cannot be read \(Permission denied\)"):
        load_images(folder_params(root))


def test_what_is_trained_on_is_not_held_out(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data", {"cat": 2})
    with pytest.raises(DataError, match=r"prepare\.held_out_path .*/data is part of prepare\.path .* trained on and held out"):
        load_parts(folder_params(root, held_out=None, held_out_path=f"{root}/../data"))
    with pytest.raises(DataError, match="is part of"):
        load_parts(folder_params(root, held_out=None, held_out_path=str(tmp_path)))
    for name in ("a.tar", "b.tar"):
        write_tar(tmp_path / name, {"cat/0.png": encoded(0)})
    with pytest.raises(DataError, match=r"b\.tar is part of prepare\.path"):
        load_parts(folder_params(tmp_path / "*.tar", source="tar", held_out=None, held_out_path=f"{tmp_path}/b.tar"))


def test_folders_of_parts_are_no_classes(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for part in ("test", "train"):
        make_folder(root / part, {"ant": 1, "bee": 1})
    with pytest.raises(DataError, match=r"holds test and train, which are parts of a data set, .* prepare\.held_out_path"):
        load_images(folder_params(root))
    assert load_images(folder_params(root / "train")).classes == ["ant", "bee"]
    shutil.rmtree(root / "test")
    with pytest.raises(DataError, match=rf"holds only train, a part of a data set, .* set it to {root}/train"):
        load_images(folder_params(root))


def test_a_folder_of_one_class_may_be_named_like_a_part(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data", {"train": 2})
    assert load_images(folder_params(root)).classes == ["train"]


def test_listing_a_folder_reads_no_image(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data", {"cat": 2})
    (root / "cat" / "0.png").write_text("broken")
    loaded = load_images(folder_params(root))
    loaded.render(1, 0)
    with pytest.raises(DataError, match=r"cat/0\.png is not an image"):
        loaded.render(0, 0)


def test_bad_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere is no folder"):
        load_images(folder_params(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty is empty"):
        load_images(folder_params(tmp_path / "empty"))
    root = make_folder(tmp_path / "data", {"cat": 2})
    (root / "dog").mkdir()
    with pytest.raises(DataError, match=r"class folder .*data/dog is empty"):
        load_images(folder_params(root))
    (root / "dog").rmdir()
    (root / "stray.png").touch()
    with pytest.raises(DataError, match=r"holds the file 'stray.png' \(1 in total\) outside class folders"):
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


def test_a_split_without_held_out_images_is_an_error() -> None:
    with pytest.raises(DataError, match=r"none of the 3 images is held out with prepare.held_out 0.2"):
        split(images(["a", "b", "c"], [0, 1, 2]), 0.2, 0)


@pytest.mark.parametrize("source", ["folder", "tar", "parquet"])
def test_a_held_out_path_is_held_out_whole_and_all_of_path_trains(tmp_path: Path, source: str) -> None:
    train, held_out = tmp_path / "train", tmp_path / "val"
    if source == "folder":
        make_folder(train, {"ant": 3, "cat": 2})
        make_folder(held_out, {"ant": 1, "cat": 1})
    elif source == "tar":
        write_tar(train / "0.tar", samples({"a": 0, "b": 1, "c": 0, "d": 0, "e": 1}))
        write_tar(held_out / "0.tar", samples({"x": 1, "y": 0}))
    else:
        write_parquet(train / "0.parquet", [0, 1, 0, 0, 1], ["ant", "cat"])
        write_parquet(held_out / "0.parquet", [1, 0], ["ant", "cat"])
    labels = "folder" if source == "folder" else "stored"
    parts = load_parts(folder_params(train, source=source, labels=labels, held_out=None, held_out_path=str(held_out)))
    assert (len(parts.train.indices), len(parts.held_out.indices)) == (5, 2)
    assert sorted(parts.held_out.images.labels) == [0, 1]
    assert parts.train.images.digest() != parts.held_out.images.digest()
    assert parts.held_out.images.render(0, 0).shape == (16, 16, 3)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"ant": 1}, r"path has 2 classes and prepare\.held_out_path 1: 1 are missing there \(cat\); both need the same"),
        ({"ant": 1, "cat": 1, "dog": 1}, r"held_out_path 3: 1 exist only there \(dog\)"),
        ({"ant": 1, "bee": 1}, r"1 are missing there \(cat\) and 1 exist only there \(bee\)"),
    ],
)
def test_held_out_images_of_other_classes_are_refused(tmp_path: Path, classes: dict[str, int], message: str) -> None:
    train, held_out = make_folder(tmp_path / "train", {"ant": 1, "cat": 1}), make_folder(tmp_path / "val", classes)
    with pytest.raises(DataError, match=message):
        load_parts(folder_params(train, held_out=None, held_out_path=str(held_out)))


def test_classes_in_another_order_are_other_classes(tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "train.parquet", [0, 1], ["ant", "cat"])
    held_out = write_parquet(tmp_path / "val.parquet", [0, 1], ["cat", "ant"])
    values = folder_params(train, source="parquet", labels="stored", held_out=None, held_out_path=str(held_out))
    with pytest.raises(DataError, match="they are the same in another order"):
        load_parts(values)


def test_a_class_of_the_schema_without_images_is_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "train.parquet", [0, 0, 2], ["ant", "bee", "cat"])
    with pytest.raises(DataError, match=r"has no image of 1 of its 3 classes \(bee\)"):
        load_parts(folder_params(path, source="parquet", labels="stored"))


def test_held_out_images_that_are_not_there_name_their_key(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "train.tar", samples({"a": 0, "b": 1}))
    values = folder_params(path, source="tar", labels="stored", held_out=None, held_out_path=str(tmp_path / "val.tar"))
    with pytest.raises(DataError, match=r"prepare\.held_out_path .*val\.tar does not exist"):
        load_parts(values)


def test_the_digest_of_a_set_covers_names_labels_classes_and_files(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data", {"cat": 2, "ant": 1})
    before = load_images(folder_params(root)).digest()
    assert load_images(folder_params(root)).digest() == before
    Image.new("RGB", (21, 30)).save(root / "cat" / "0.png")
    changed = load_images(folder_params(root)).digest()
    assert changed != before
    (root / "ant").rename(root / "bee")
    assert load_images(folder_params(root)).digest() != changed
    assert load_images(params()).digest() == load_images(params()).digest()
