from dataclasses import asdict
from pathlib import Path

import pytest

from sfd_core.host.errors import DataError
from sfd_core.host.paths import file_digest, write_json
from sfd_core.latents.identity import IDENTITY_FILE, STATISTICS_FILE, LatentIdentity, read_latent_identity


@pytest.fixture
def encoded(tmp_path: Path) -> Path:
    (tmp_path / STATISTICS_FILE).write_bytes(b"statistics")
    identity = LatentIdentity({"name": "t"}, {"name": "s"}, {"name": "e"}, file_digest(tmp_path / STATISTICS_FILE), "latents")
    write_json(tmp_path / IDENTITY_FILE, asdict(identity))
    return tmp_path


def test_an_identity_is_read_back(encoded: Path) -> None:
    assert read_latent_identity(encoded).semantic_vae == {"name": "s"}


@pytest.mark.parametrize("lost", [IDENTITY_FILE, STATISTICS_FILE])
def test_a_lost_file_is_one_message(encoded: Path, lost: str) -> None:
    (encoded / lost).unlink()
    with pytest.raises(DataError, match=r"holds no identity of latents .*; run `dvc repro encode`"):
        read_latent_identity(encoded)


def test_other_statistics_are_refused(encoded: Path) -> None:
    (encoded / STATISTICS_FILE).write_bytes(b"others")
    with pytest.raises(DataError, match="does not match its recorded hash"):
        read_latent_identity(encoded)
