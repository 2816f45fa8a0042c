import gzip
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from archives import encoded, samples, tar_bytes, write_tar
from PIL import Image

from sfd_core.data.sources.crops import centre_crop
from sfd_core.data.sources.image_set import ImageSet, Location
from sfd_core.data.sources.tar import members, tar_images
from sfd_core.host.errors import DataError

SAMPLE = Path(os.environ.get("SFD_IMAGENET_SAMPLE", "imagenet-sample-1000.tar"))
"""One image of each class of ImageNet in class folders, where somebody has it."""


def load(path: Path, labels: str = "folder") -> ImageSet:
    return tar_images(Location("prepare.path", str(path)), labels, 16)  # type: ignore[arg-type]


def first_pixels(images: ImageSet) -> list[int]:
    return [int(images.render(index, 0)[0, 0, 0]) for index in range(len(images.names))]


def classes_of(images: ImageSet) -> dict[str, str]:
    return {name: images.classes[label] for name, label in zip(images.names, images.labels, strict=True)}


def in_folders(prefix: str = "") -> dict[str, bytes]:
    names = ["cat/0.png", "ant/1.png", "cat/deep/2.png"]
    return {f"{prefix}{name}": encoded(number) for number, name in enumerate(names)}


@pytest.mark.parametrize("prefix", ["", "imagenet/", "./imagenet/train/"])
def test_members_lie_in_class_folders_below_whatever_holds_all(tmp_path: Path, prefix: str) -> None:
    images = load(write_tar(tmp_path / "a.tar", in_folders(prefix)))
    assert images.classes == ["ant", "cat"]
    assert images.labels == [1, 0, 1]
    assert first_pixels(images) == [0, 1, 2]
    assert [name.endswith(end) for name, end in zip(images.names, ("cat/0.png", "ant/1.png", "deep/2.png"), strict=True)]


def test_one_class_is_a_class_and_no_wrapping_folder(tmp_path: Path) -> None:
    assert load(write_tar(tmp_path / "a.tar", {"root/cat/0.png": encoded(0)})).classes == ["cat"]


def test_pixels_are_those_of_the_file(tmp_path: Path) -> None:
    images = load(write_tar(tmp_path / "a.tar", in_folders()))
    (tmp_path / "0.png").write_bytes(encoded(0))
    with Image.open(tmp_path / "0.png") as image:
        np.testing.assert_array_equal(images.render(0, 0), centre_crop(image, 16))


def test_several_files_may_share_classes_or_be_one_each(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    write_tar(shared / "1.tar", {"cat/0.png": encoded(0), "ant/1.png": encoded(1)})
    write_tar(shared / "2.tar", {"cat/0.png": encoded(2)})
    assert classes_of(load(shared)) == {"1/cat/0.png": "cat", "1/ant/1.png": "ant", "2/cat/0.png": "cat"}
    assert first_pixels(load(shared)) == [0, 1, 2]
    single = tmp_path / "single"
    write_tar(single / "n01.tar", {"n01_0.JPEG": encoded(0)})
    write_tar(single / "n02.tar", {"n02_0.JPEG": encoded(1), "n02_1.JPEG": encoded(2)})
    assert classes_of(load(single)) == {"n01/n01_0.JPEG": "n01", "n02/n02_0.JPEG": "n02", "n02/n02_1.JPEG": "n02"}


def test_a_tar_file_of_tar_files_is_read_without_unpacking(tmp_path: Path) -> None:
    """ImageNet's training images are one tar file of a tar file for each class."""
    inner = {"n01.tar": {"n01_0.JPEG": encoded(0)}, "n02.tar": {"n02_0.JPEG": encoded(1), "n02_1.JPEG": encoded(2)}}
    path = write_tar(tmp_path / "train.tar", {name: tar_bytes(content) for name, content in inner.items()})
    images = load(path)
    assert classes_of(images) == {"n01/n01_0.JPEG": "n01", "n02/n02_0.JPEG": "n02", "n02/n02_1.JPEG": "n02"}
    assert first_pixels(images) == [0, 1, 2]


def test_long_names_of_every_tar_format_are_kept(tmp_path: Path) -> None:
    name = "cat/" + "long-" * 60 + "é.png"
    for number, kind in enumerate((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        with tarfile.open(tmp_path / f"{number}.tar", "w", format=kind) as archive:
            (tmp_path / "image").write_bytes(encoded(3))
            archive.add(tmp_path / "image", name)
            archive.add(tmp_path / "image", "ant/1.png")
        images = load(tmp_path / f"{number}.tar")
        assert images.names == [name, "ant/1.png"]
        assert first_pixels(images) == [3, 3]


@pytest.mark.parametrize("kind", ["cls", "json"])
def test_webdataset_samples_have_their_label_beside_them(tmp_path: Path, kind: str) -> None:
    write_tar(tmp_path / "d" / "train-0.tar", samples({"n0_1": 1, "n0_2": 0}, kind))
    write_tar(tmp_path / "d" / "train-1.tar", samples({"sub/n0_3": 2, "sub/n0_4": 0}, kind) | {"sub/n0_4.txt": b"caption"})
    write_tar(tmp_path / "d" / "other.tar", {"x.png": b""})
    images = load(tmp_path / "d" / "train-*.tar", "stored")
    assert images.classes == ["0", "1", "2"]
    assert images.labels == [1, 0, 2, 0]
    assert images.names == ["train-0/n0_1.png", "train-0/n0_2.png", "train-1/sub/n0_3.png", "train-1/sub/n0_4.png"]
    assert first_pixels(images) == [0, 1, 0, 1]


def test_a_class_number_in_text_goes_before_one_in_json(tmp_path: Path) -> None:
    content = samples({"a": 0, "b": 1}) | {"a.json": b'{"filename": "a.JPEG"}'}
    assert load(write_tar(tmp_path / "a.tar", content), "stored").labels == [0, 1]


BAD_SAMPLES = {
    "image without label": ({"a.png": b""}, r"image a has no label .* set prepare\.labels to folder"),
    "label without image": ({"a.cls": b"0"}, r"sample a has a label but no image \(its members end with cls"),
    "two images": ({"a.png": b"", "a.jpg": b"", "a.cls": b"0"}, r"sample a has two images, a\.png and a\.jpg"),
    "no number": ({"a.png": b"", "a.cls": b"cat"}, r"a\.cls holds no class number .*'cat'"),
    "test set": ({"a.png": b"", "a.cls": b"-1"}, r"a\.cls holds -1, which is no class"),
    "json without label": ({"a.png": b"", "a.json": b'{"url": 1}'}, r"a\.json holds no class number \(it has keys url"),
    "json of a name": ({"a.png": b"", "a.json": b'{"label": "cat"}'}, r"no integer under label or cls"),
    "json damaged": ({"a.png": b"", "a.json": b"{"}, r"a\.json holds no class number"),
    "gap": (samples({"a": 0, "b": 2}), r"the largest label is 2, but class 1 has no image"),
    "nothing": ({"a.txt": b""}, r"holds no image; .* need an image and a \.cls or \.json member"),
}


@pytest.mark.parametrize(("content", "message"), BAD_SAMPLES.values(), ids=BAD_SAMPLES.keys())
def test_bad_samples_are_named(tmp_path: Path, content: dict[str, bytes], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(write_tar(tmp_path / "a.tar", content), "stored")


def test_keys_end_at_the_first_dot_and_no_image_is_dropped_for_it(tmp_path: Path) -> None:
    images = load(write_tar(tmp_path / "a.tar", {"7.small.png": encoded(7), "7.cls": b"0"}), "stored")
    assert (images.names, images.labels) == (["7.small.png"], [0])
    content = {"cat.1.png": encoded(0), "cat.1.cls": b"0", "cat.2.png": encoded(1), "cat.2.cls": b"0"}
    with pytest.raises(DataError, match=r"sample cat has two images, cat.1.png and cat.2.png; .* a key ends at its first dot"):
        load(write_tar(tmp_path / "b.tar", content), "stored")


def test_what_is_neither_image_nor_label_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = {"0.png": encoded(0), "0.cls": b"0", "notes.txt": b"", "more.md": b""}
    assert load(write_tar(tmp_path / "a.tar", content), "stored").names == ["0.png"]
    assert f"skipped: 2 keys of {tmp_path / 'a.tar'} without image and label, such as notes.txt" in capsys.readouterr().err


def test_archives_in_one_file_are_not_half_read(tmp_path: Path) -> None:
    first, second = (write_tar(tmp_path / f"{name}.tar", {f"{name}/0.png": encoded(0)}) for name in ("ant", "bee"))
    both = tmp_path / "both.tar"
    both.write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.raises(DataError, match=r"both\.tar .*another archive follows its end"):
        load(both)


@pytest.mark.parametrize("name", ["b.tar.gz", "b.tgz", "b.tar.zst"])
def test_compressed_files_are_not_left_out(tmp_path: Path, name: str) -> None:
    write_tar(tmp_path / "data" / "a.tar", in_folders())
    (tmp_path / "data" / name).touch()
    with pytest.raises(DataError, match=rf"holds {name} \(1 compressed files\); decompress"):
        load(tmp_path / "data")


def test_files_of_one_name_in_two_folders_are_refused(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write_tar(tmp_path / folder / "a.tar", in_folders())
    with pytest.raises(DataError, match=r"holds 2 files named a,"):
        load(tmp_path / "*" / "a.tar")


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    assert len(load(write_tar(tmp_path / "a[1].tar", in_folders())).names) == 3


def test_images_outside_class_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"prepare\.path .*a\.tar: 9\.png is in no class folder; .*prepare\.labels to stored"):
        load(write_tar(tmp_path / "a.tar", in_folders() | {"9.png": b""}))


def test_a_file_above_the_class_folders_does_not_make_them_one_class(tmp_path: Path) -> None:
    file = write_tar(tmp_path / "a.tar", in_folders("train/") | {"train/overview.png": encoded(3)})
    with pytest.raises(DataError, match=r"train/overview\.png lies above folders such as train/cat/deep, .* class 'train'"):
        load(file)


def test_folders_of_parts_are_no_classes(tmp_path: Path) -> None:
    content = {f"{part}/{name}/0.png": encoded(0) for part in ("train", "test") for name in ("cat", "dog")}
    with pytest.raises(DataError, match="holds test and train, which are parts of a data set"):
        load(write_tar(tmp_path / "a.tar", content))


def test_hidden_members_are_no_data(tmp_path: Path) -> None:
    content = in_folders() | {"cat/._0.png": b"x", ".DS_Store": b"x"}
    assert len(load(write_tar(tmp_path / "a.tar", content)).names) == 3


def test_a_member_that_is_no_image_is_named_when_it_is_read(tmp_path: Path) -> None:
    images = load(write_tar(tmp_path / "a.tar", in_folders() | {"cat/notes.txt": b"text"}))
    with pytest.raises(DataError, match=r"cat/notes\.txt in .*a\.tar is not an image .*skip_unreadable"):
        images.render(3, 0)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_cut_tar_file_is_found_while_listing(tmp_path: Path, share: float) -> None:
    content = tar_bytes({f"cat/{number}.png": encoded(number) for number in range(8)}).rstrip(b"\0") + bytes(1024)
    (tmp_path / "a.tar").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError, match=r"a\.tar is no complete, uncompressed tar file"):
        load(tmp_path / "a.tar")


def test_a_tar_file_cut_between_members_is_found_too(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", in_folders())
    *_, last = members(path)
    path.write_bytes(path.read_bytes()[: last.offset - 512])
    with pytest.raises(DataError, match="its end is missing"):
        load(path)


def test_zero_bytes_in_place_of_the_last_members_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_tar(tmp_path / "a.tar", samples({str(number): number % 2 for number in range(8)}))
    whole = path.read_bytes()
    assert len(load(path, "stored").names) == 8
    assert capsys.readouterr().err == ""
    path.write_bytes(whole + bytes(12_000))
    assert len(load(path, "stored").names) == 8
    assert "a.tar ends with" in capsys.readouterr().err


def test_other_files_are_no_tar_files(tmp_path: Path) -> None:
    for content in (b"", b"text" * 1000, gzip.compress(tar_bytes(in_folders()))):
        (tmp_path / "a.tar").write_bytes(content)
        with pytest.raises(DataError, match=r"a\.tar is no complete, uncompressed tar file"):
            load(tmp_path / "a.tar")


def test_links_and_names_that_occur_twice_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "links.tar", "w") as archive:
        info = tarfile.TarInfo("cat/0.png")
        info.type, info.linkname = tarfile.SYMTYPE, "elsewhere.png"
        archive.addfile(info)
    with pytest.raises(DataError, match=r"cat/0\.png is a link"):
        load(tmp_path / "links.tar")
    write_tar(tmp_path / "twice.tar", in_folders())
    with tarfile.open(tmp_path / "twice.tar", "a") as archive:
        archive.addfile(tarfile.TarInfo("cat/0.png"))
    with pytest.raises(DataError, match=r"twice\.tar holds cat/0\.png twice"):
        load(tmp_path / "twice.tar")


def test_a_file_that_changed_since_it_was_listed_is_named(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", in_folders())
    images = load(path)
    stamp = images.stamp()
    path.write_bytes(path.read_bytes()[:2000])
    assert images.stamp() != stamp
    with pytest.raises(DataError, match=r"a\.tar became shorter after it was listed"):
        images.render(2, 0)
    path.unlink()
    with pytest.raises(DataError, match=r"a\.tar cannot be read"):
        images.render(2, 0)


@pytest.mark.parametrize(
    ("name", "message"), [("nowhere.tar", "does not exist"), ("empty", r"holds no \.tar file"), ("x*.tar", "matches no file")]
)
def test_missing_files_are_named(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=rf"prepare\.path .* {message}; give one \.tar file, a folder of them, or a pattern"):
        load(tmp_path / name)


def test_every_file_of_a_folder_is_read_or_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.TAR", "b.tar"):
        write_tar(tmp_path / "all" / name, in_folders())
    (tmp_path / "all" / "index.txt").touch()
    images = load(tmp_path / "all")
    assert {name.split("/")[0] for name in images.names} == {"a", "b"}
    assert "skipped: 1 files of" in capsys.readouterr().err
    write_tar(tmp_path / "all" / "more" / "c.tar", in_folders())
    with pytest.raises(DataError, match=r"holds more/c\.tar \(1 \.tar files in sub-folders\), .* give a pattern"):
        load(tmp_path / "all")
    assert len({name.split("/")[0] for name in load(tmp_path / "all" / "**" / "*.[tT][aA][rR]").names}) == 3


def test_threads_read_at_once(tmp_path: Path) -> None:
    images = load(write_tar(tmp_path / "a.tar", {f"cat/{number}.png": encoded(number) for number in range(64)}))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda index: int(images.render(index, 0)[0, 0, 0]), list(range(64)) * 4))
    assert found == list(range(64)) * 4


@pytest.mark.skipif(not SAMPLE.is_file(), reason="a sample of ImageNet in its own layout is not there")
def test_a_sample_of_imagenet_in_its_own_layout() -> None:
    images = load(SAMPLE)
    assert (len(images.names), len(images.classes), images.classes[0]) == (1000, 1000, "n01440764")
    assert images.render(500, 0).shape == (16, 16, 3)
