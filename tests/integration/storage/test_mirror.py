"""Folders mirrored to a real S3 server and restored from it."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faulty_proxy import FaultyProxy
from same_outputs import bytes_below
from waiting import wait_until

from sfd_core.host.errors import ConfigError, DataError, ResourceError
from sfd_core.host.paths import atomic_dir
from sfd_core.storage import bucket, mirror
from sfd_core.storage.bucket import Storage
from sfd_core.storage.mirror import Mirror, Place, complete_folders, download_folder, restore, upload_folder


def make_step(folder: Path, step: int) -> dict[str, bytes]:
    """Write a checkpoint of two processes as a training does, whole at once, and return its files."""
    files = {f"rank-{rank}.safetensors": os.urandom(1000) for rank in range(2)} | {"deep/manifest.json": b"{}"}
    with atomic_dir(folder / f"step-{step:08d}") as temporary:
        for name, data in files.items():
            (temporary / name).parent.mkdir(exist_ok=True)
            (temporary / name).write_bytes(data)
    return files


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    return f"mirrors/{request.node.name}"


def test_a_folder_comes_back_as_it_was(storage: Storage, prefix: str, tmp_path: Path) -> None:
    files = make_step(tmp_path, 1)
    upload_folder(storage, tmp_path / "step-00000001", prefix)
    download_folder(storage, prefix, tmp_path / "down")
    assert bytes_below(tmp_path / "down") == files


def test_an_upload_that_was_broken_off_counts_as_absent_and_goes_on(
    storage: Storage, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, upload, sent = make_step(tmp_path, 1), storage.upload, []

    def broken(path: Path, key: str, digest: str | None = None) -> None:
        if len(sent) == 2:
            raise ResourceError("broken off")
        sent.append(path.name)
        upload(path, key, digest)

    monkeypatch.setattr(storage, "upload", broken)
    with pytest.raises(ResourceError, match="broken off"):
        upload_folder(storage, tmp_path / "step-00000001", f"{prefix}/step-00000001")
    assert complete_folders(storage, prefix) == []
    assert restore(storage, prefix, tmp_path / "other") is None
    sent.clear()
    upload_folder(storage, tmp_path / "step-00000001", f"{prefix}/step-00000001")
    assert len(sent) == 1
    assert bytes_below(restore(storage, prefix, tmp_path / "other") or tmp_path) == files


def test_what_another_machine_left_of_the_same_step_is_not_taken_for_ones_own(
    storage: Storage, prefix: str, tmp_path: Path
) -> None:
    files = make_step(tmp_path, 1)
    storage.put(f"{prefix}/step-00000001/rank-0.safetensors", os.urandom(1000))
    upload_folder(storage, tmp_path / "step-00000001", f"{prefix}/step-00000001")
    assert bytes_below(restore(storage, prefix, tmp_path / "other") or tmp_path) == files


def test_the_newest_whole_and_undamaged_step_is_restored(
    storage: Storage, prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = {step: make_step(tmp_path / "up", step) for step in (1, 2, 3)}
    for step in steps:
        upload_folder(storage, tmp_path / "up" / f"step-{step:08d}", f"{prefix}/step-{step:08d}")
    storage.put(f"{prefix}/step-00000003/rank-1.safetensors", b"damaged")
    restored = restore(storage, prefix, tmp_path / "down")
    assert restored == tmp_path / "down" / "step-00000002"
    assert bytes_below(restored) == steps[2]
    assert "step-00000003/rank-1.safetensors is damaged" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "down").iterdir()] == ["step-00000002"]


def test_a_step_as_new_on_this_disk_is_kept(storage: Storage, prefix: str, tmp_path: Path) -> None:
    for step in (1, 2):
        make_step(tmp_path, step)
    upload_folder(storage, tmp_path / "step-00000001", f"{prefix}/step-00000001")
    assert restore(storage, prefix, tmp_path) == tmp_path / "step-00000002"
    assert restore(storage, f"{prefix}/nothing", tmp_path / "nothing") is None


def test_a_manifest_that_points_outside_is_refused(storage: Storage, prefix: str, tmp_path: Path) -> None:
    storage.put(f"{prefix}/MANIFEST.json", b'{"../outside": {"size": 1, "sha256": "00"}}')
    with pytest.raises(DataError, match="outside the folder"):
        download_folder(storage, prefix, tmp_path / "down")
    assert list(tmp_path.iterdir()) == []


def test_steps_are_mirrored_as_they_come_and_go(storage: Storage, prefix: str, tmp_path: Path) -> None:
    storage.put(f"{prefix}/step-00000000/MANIFEST.json", b"{}")  # of another machine
    with Mirror(storage, tmp_path, prefix, kept=1, every=0.05):
        (tmp_path / ".step-00000009.x.partial").mkdir()
        for step in (1, 2, 3):
            make_step(tmp_path, step)
            wait_until(lambda step=step: f"step-{step:08d}" in complete_folders(storage, prefix), "the upload", 30)
        shutil.rmtree(tmp_path / "step-00000001")
        wait_until(lambda: "step-00000001" not in complete_folders(storage, prefix), "the deletion", 30)
        last = make_step(tmp_path, 4)
    assert complete_folders(storage, prefix) == [f"step-{step:08d}" for step in (0, 2, 3, 4)]
    assert bytes_below(restore(storage, prefix, tmp_path / "other") or tmp_path) == last


def test_a_step_that_is_deleted_during_its_upload_arrives_whole(
    storage: Storage, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, upload = make_step(tmp_path, 1), storage.upload

    def slow(path: Path, key: str, digest: str | None = None) -> None:
        shutil.rmtree(tmp_path / "step-00000001", ignore_errors=True)
        upload(path, key, digest)

    monkeypatch.setattr(storage, "upload", slow)
    Mirror(storage, tmp_path, prefix)._mirror_once()
    assert list(tmp_path.iterdir()) == []
    assert bytes_below(restore(storage, prefix, tmp_path / "other") or tmp_path) == content


def test_the_newest_step_goes_up_first(storage: Storage, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2, 3):
        make_step(tmp_path, step)
    order: list[str] = []
    monkeypatch.setattr(mirror, "upload_folder", lambda storage, folder, prefix: order.append(folder.name))
    Mirror(storage, tmp_path, prefix)._mirror_once()
    assert order == ["step-00000003", "step-00000002", "step-00000001"]


@pytest.mark.usefixtures("impatient")
def test_a_training_neither_waits_nor_fails_while_the_storage_is_down(
    proxy: FaultyProxy,
    credentials: Callable[..., None],
    storage: Storage,
    prefix: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    credentials(proxy.endpoint)
    proxy.set("refuses")
    begun = time.monotonic()
    with Mirror(Storage("lab"), tmp_path, prefix, every=0.05):
        for step in (1, 2):
            make_step(tmp_path, step)
        assert time.monotonic() - begun < 3
        wait_until(lambda: proxy.connections > 3, "more connections", 30)
        proxy.set("busy")
        time.sleep(0.5)
        proxy.set("works")
    assert complete_folders(storage, prefix) == ["step-00000001", "step-00000002"]
    told = capsys.readouterr().err
    assert told.count("is not mirrored: ") == 1
    assert told.count("is mirrored to s3://lab/") == 1


def test_a_wrong_key_is_told_before_the_first_step(
    endpoint: str, credentials: Callable[..., None], prefix: str, tmp_path: Path
) -> None:
    credentials(endpoint, secret="wrong-secret")
    with pytest.raises(ResourceError, match="access denied"), Mirror(Storage("lab"), tmp_path, prefix):
        pytest.fail("the training began")


def test_a_hung_storage_does_not_hold_up_the_end(
    proxy: FaultyProxy, credentials: Callable[..., None], prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials(proxy.endpoint)
    monkeypatch.setattr(bucket, "READ_SECONDS", 30)
    mirroring = Mirror(Storage("lab"), tmp_path, prefix, every=0.05)
    with mirroring:
        proxy.set("hangs")
        make_step(tmp_path, 1)
        begun = time.monotonic()
        mirroring.close(seconds=1)
        assert time.monotonic() - begun < 3
        proxy.set("works")


@pytest.mark.parametrize(("text", "place"), [("s3://lab", Place("lab")), ("s3://lab/a/b/", Place("lab", "a/b")), ("", None)])
def test_the_place_of_checkpoints_comes_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, text: str, place: Place | None
) -> None:
    monkeypatch.setenv("SFD_CHECKPOINTS", text)
    assert Place.of_environment() == place
    if place is not None:
        assert place.key("train", "k") == "/".join([*filter(None, [place.prefix]), "train", "k"])


def test_a_place_that_is_no_address_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFD_CHECKPOINTS", "checkpoints")
    with pytest.raises(ConfigError, match="SFD_CHECKPOINTS is 'checkpoints', but must be s3://BUCKET"):
        Place.of_environment()
