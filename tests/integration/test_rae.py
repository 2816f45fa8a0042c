"""SFD over the tokens of a representation autoencoder in the published format, through `dvc repro` on a tiny project."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from projects import make_project
from published_files import random_rae

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PUBLISHED = {"kind": "diffusers", "name": "rae", "weights": "weights/rae", "subfolder": None, "channels": 128}


def test_from_images_to_numbers_over_rae_latents(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", ["sfd"])
    random_rae().save_pretrained(project.path / "weights" / "rae")
    project.set(
        {
            "texture_vae": PUBLISHED | {"downsampling": 16},
            "features": project.values()["features"] | {"input_size": 32, "grid": 2},
            "variants.sfd.patch": 1,
            "studies": {},
        }
    )
    project.run("dvc", "repro", "evaluate@sfd")
    outputs = project.path / "outputs"
    model = json.loads((outputs / "train" / "sfd" / "model.json").read_text())
    assert (model["latent"]["texture_channels"], model["latent"]["grid"]) == (128, 2)
    assert model["identity"]["texture_vae"]["name"] == "rae"
    curve = pd.read_csv(outputs / "evaluate" / "sfd" / "curve.csv")
    assert curve["step"].tolist() == [2, 4]
    assert bool(np.isfinite(curve["fd_efficientnet_lite0"]).all())
    project.run("sfd", "sample", "sfd", "--count", "2", "--out", "samples.png")
    assert "up to date" in project.run("dvc", "status", "evaluate@sfd").stdout
