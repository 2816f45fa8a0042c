"""The command `sfd` on a reproduced tiny project: sample, evaluate, import, experiment."""

import json
import re
import sys
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from projects import Project
from safetensors.torch import load_file

from sfd_core.cli.main import main

pytestmark = pytest.mark.timeout(900)


Command = Callable[..., tuple[str, str]]
"""Runs `sfd` with these words and returns what it printed on stdout and stderr."""


@pytest.fixture
def sfd(reproduced: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`sfd` in the folder of the tiny project, in this process, which has imported everything already."""
    monkeypatch.chdir(reproduced.path)

    def run(*words: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["sfd", *words])
        main()
        return tuple(capsys.readouterr())

    return run


def test_samples_are_a_picture_that_the_seed_decides(reproduced: Project, sfd: Command) -> None:
    def drawn(seed: str) -> np.ndarray:
        out = f".sfd/samples-{seed}.png"
        sfd("sample", "sfd", "--labels", "squares", "0", "--count", "2", "--seed", seed, "--out", out)
        return np.asarray(Image.open(reproduced.path / out))

    first = drawn("0")
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(drawn("0"), first)
    assert (drawn("1") != first).any()


def test_an_imported_denoiser_is_sampled_and_judged_as_the_one_that_was_trained(reproduced: Project, sfd: Command) -> None:
    weights = load_file(reproduced.path / "outputs" / "train" / "sfd" / "snapshots" / "step-00000004.safetensors")
    (reproduced.path / ".sfd" / "public").mkdir(parents=True, exist_ok=True)
    torch.save(
        {"ema": {f"module.{name}": value for name, value in weights.items()}},
        reproduced.path / ".sfd" / "public" / "0000004.pt",
    )
    sfd("import", "sfd", ".sfd/public/0000004.pt", "--out", ".sfd/imported", "--batch-size", "8")
    images, numbers = [], []
    for artifact, folder in (("sfd", "outputs/train/sfd"), (".sfd/imported", ".sfd/imported")):
        sfd("sample", artifact, "--out", ".sfd/drawn.png")
        images.append(np.asarray(Image.open(reproduced.path / ".sfd" / "drawn.png")))
        sfd("evaluate", artifact, "--samples", "6", "--out", ".sfd/numbers.json")
        measured = json.loads((reproduced.path / ".sfd" / "numbers.json").read_text())["final"]
        assert {number["protocol"].pop("recipe")["artifact"] for number in measured.values()} == {folder}
        numbers.append(measured)
    np.testing.assert_array_equal(*images)
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["sample", "sfd", "--labels", "triangles"], "0 circles, 1 squares, 2 stripes"),
        (["sample", "none-such"], "none-such"),
        (["sample", "sfd", "--snapshot", "3"], "snapshot"),
        (["experiment", "wrong", "--set", "train.steps=3"], "train.steps"),
        (["validate", "none-such.yaml"], "none-such.yaml"),
        (["import", "sfd", "none-such.pt", "--out", ".sfd/none", "--step", "1"], "none-such.pt does not exist"),
        (["evaluate"], "nothing to evaluate"),
        (["evaluate", "--from", "none-such.json"], "none-such.json"),
        (["evaluate", "--from", "none-such.json", "--seed", "3"], "--seed"),
        (["evaluate", "sfd", "--png", "images"], "would be replaced"),
        (["guidance-curve", "sfd", "--scales", "2", "--out", ".sfd/no"], "choose --guidance"),
    ],
)
def test_a_user_s_mistake_is_one_message_and_exit_code_2(
    sfd: Command, words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        sfd(*words)
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert named in printed


def test_numbers_are_printed_and_written_with_their_protocols(reproduced: Project, sfd: Command) -> None:
    printed, _ = sfd("evaluate", "sfd", "--samples", "6", "--evaluations", "4", "--out", ".sfd/numbers.json")
    numbers = json.loads((reproduced.path / ".sfd" / "numbers.json").read_text())
    protocol = numbers["final"]["fd_efficientnet_lite0"]["protocol"]
    assert (protocol["samples"], protocol["evaluations"]) == (6, 4)
    assert re.search(r"^fd_efficientnet_lite0 +\d", printed, re.MULTILINE)


def test_every_number_of_a_variant_can_be_measured_again_from_its_protocol(reproduced: Project, sfd: Command) -> None:
    recorded = "outputs/evaluate/sfd/numbers.json"
    printed, _ = sfd("evaluate", "--from", recorded, "--out", ".sfd/again.json")
    old, new = (json.loads((reproduced.path / name).read_text()) for name in (recorded, ".sfd/again.json"))
    assert set(new) == {"final", "oracle"}
    assert new == old
    assert printed.count("  equal") == sum(len(numbers) for numbers in old.values())
    assert not list((reproduced.path / ".sfd" / "resume").glob("measure/*"))


def test_the_judged_images_are_exported(reproduced: Project, sfd: Command) -> None:
    sfd("evaluate", "sfd", "--samples", "6", "--npz", ".sfd/samples.npz", "--png", ".sfd/png")
    with np.load(reproduced.path / ".sfd" / "samples.npz", allow_pickle=False) as saved:
        images, labels = saved["arr_0"], saved["arr_1"]
    assert images.shape == (6, 32, 32, 3)
    assert labels.tolist() == [0, 1, 2, 0, 1, 2]
    files = sorted((reproduced.path / ".sfd" / "png").iterdir())
    for file, image in zip(files, images, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(file)), image)


def test_a_guidance_curve_is_measured_point_by_point_and_only_once(reproduced: Project, sfd: Command) -> None:
    words = ["guidance-curve", "sfd", "--guidance", "cfg", "--scales", "1", "2", "--intervals", "0,1", "0.3,1"]
    words += ["--evaluations", "3", "4", "--samples", "6", "--out", ".sfd/guidance"]
    first, _ = sfd(*words)
    table = pd.read_csv(reproduced.path / ".sfd" / "guidance" / "curve.csv")
    assert len(table) == 2 * (1 + 2)
    again, said = sfd(*words)
    assert said.count("measured already") == len(table)
    assert again == first


def test_an_experiment_computes_only_what_the_project_did_not(reproduced: Project) -> None:
    words = ["experiment", "seeds", "--set", 'active=["sfd"]', "--vary", "seed", "0", "1", "--table", ".sfd/seeds.csv"]
    printed = reproduced.run("sfd", *words, "--curves", ".sfd/curves.csv").stdout
    ran = [stage for stage, then in re.findall(r"^Running stage '([^']+)':\n(.*)", printed, re.MULTILINE)]
    assert set(ran) == {"train@sfd-seed-1", "evaluate@sfd-seed-1", "studies", "report"}
    table = pd.read_csv(reproduced.path / ".sfd" / "seeds.csv")
    assert table[["variant", "seed"]].to_numpy().tolist() == [["sfd", 0], ["sfd", 1]]
    assert table["fd_efficientnet_lite0"].nunique() == 2
    curves = pd.read_csv(reproduced.path / ".sfd" / "curves.csv")
    assert list(curves["variant"].unique()) == ["sfd", "sfd-seed-1"]
    assert curves.groupby("variant")["step"].max().nunique() == 1
    assert (reproduced.path / ".sfd" / "experiments" / "seeds" / "report" / "index.html").is_file()
    assert json.loads(reproduced.run("dvc", "status", "--json").stdout) == {}
