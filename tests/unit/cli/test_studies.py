"""Studies that `sfd` refuses, as they would vary nothing."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from sfd_core.cli import studies
from sfd_core.cli.main import app
from sfd_core.experiment.params import load_params
from sfd_core.host.errors import ConfigError

ROOT = Path(__file__).parents[3]


def test_semantics_of_a_denoiser_without_any_are_not_guided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    denoiser = SimpleNamespace(variant=load_params().variants["lightningdit"])
    monkeypatch.setattr(studies, "drawn_measurement", lambda *_: SimpleNamespace(pipeline=SimpleNamespace(denoiser=denoiser)))
    words = ["--guidance", "cfg", "--parts", "semantic", "--scales", "1", "2", "--out", str(tmp_path / "out")]
    with pytest.raises(ConfigError, match="--parts is semantic, but variant lightningdit has no semantics; set it to texture"):
        app(["guidance-curve", "lightningdit", *words])
