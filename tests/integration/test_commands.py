"""The command `sfd` on a reproduced tiny project: sample, evaluate, import, experiment."""

import ast
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from projects import Project
from published_files import write_denoiser
from safetensors.torch import load_file

from sfd_core.cli import main
from sfd_core.host.resume import held
from sfd_core.workspace import git
from sfd_core.workspace.clearing import find_clearable
from sfd_core.workspace.dvc import write_local_config

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(900)


Command = Callable[..., tuple[str, str]]
"""Runs `sfd` with these words and returns what it printed on stdout and stderr."""


@pytest.fixture
def sfd(reproduced: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`sfd` in the folder of the tiny project, in this process, which has imported everything already."""
    monkeypatch.chdir(reproduced.path)

    def run(*words: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["sfd", *words])
        main.run()
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
    write_denoiser(reproduced.path / ".sfd" / "public" / "0000004.pt", weights)
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
    assert set(new) == {"final"}
    assert new == old
    assert printed.count("  equal") == sum(len(numbers) for numbers in old.values())
    assert not list((reproduced.path / ".sfd" / "resume").glob("measure/*"))


def test_the_judged_images_are_exported_and_measured_again(reproduced: Project, sfd: Command) -> None:
    printed, _ = sfd("evaluate", "sfd", "--samples", "6", "--npz", ".sfd/samples.npz", "--png", ".sfd/png")
    for images in (".sfd/samples.npz", ".sfd/png"):
        again, _ = sfd("measure", images, "--out", ".sfd/elsewhere.json")
        assert again == f"6 images\n{printed}"
    numbers = json.loads((reproduced.path / ".sfd" / "elsewhere.json").read_text())["final"]
    assert all(number["protocol"]["recipe"] is None for number in numbers.values())
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
    words = ["experiment", "seeds", "--variants", "sfd", "--vary", "seed", "0", "1", "--table", ".sfd/seeds.csv"]
    printed = reproduced.run("sfd", *words, "--curves", ".sfd/curves.csv").stdout
    ran = [stage for stage, then in re.findall(r"^Running stage '([^']+)':\n(.*)", printed, re.MULTILINE)]
    studies = {"studies@sfd", "studies@sfd-seed-1"}  # each depends on all studies of params.yaml, and there is one more
    assert set(ran) == {"inputs", "train@sfd-seed-1", "evaluate@sfd-seed-1", *studies, "report"}
    for kind, file in {"table": "seeds.csv", "curves": "curves.csv"}.items():
        assert f"{kind}: {reproduced.path / '.sfd' / file}" in printed
    table = pd.read_csv(reproduced.path / ".sfd" / "seeds.csv")
    assert table[["variant", "seed"]].to_numpy().tolist() == [["sfd", 0], ["sfd", 1]]
    assert table["fd_efficientnet_lite0"].nunique() == 2
    assert set(table["samples"]) == {reproduced.values()["evaluate"]["final_samples"]}
    curves = pd.read_csv(reproduced.path / ".sfd" / "curves.csv")
    assert list(curves["variant"].unique()) == ["sfd", "sfd-seed-1"]
    assert curves.groupby("variant")["step"].max().nunique() == 1
    assert (reproduced.path / ".sfd" / "experiments" / "seeds" / "report" / "index.html").is_file()
    assert json.loads(reproduced.run("dvc", "status", "--json").stdout) == {}


def test_a_curve_is_compared_with_the_parameters_that_made_it(reproduced: Project, sfd: Command) -> None:
    sfd("curve", "record", "--out", ".sfd/recorded.csv")
    words = ["curve", "compare", "sfd", "--curves", ".sfd/recorded.csv"]
    before, _ = sfd(*words)
    assert "1.00" in before
    params = (reproduced.path / "params.yaml").read_text()
    reproduced.set({"train.optimisation.batch_size": 4})
    try:
        after, said = sfd(*words)
    finally:
        (reproduced.path / "params.yaml").write_text(params)
    assert after == before
    assert "train.optimisation.batch_size" in said


@pytest.fixture
def ref(reproduced: Project) -> Iterator[str]:
    """The Git ref of a finished point of a sweep with the results of the project."""
    base = reproduced.run("git", "rev-parse", "HEAD").stdout.strip()
    files = {name: (reproduced.path / name).read_text() for name in ("params.yaml", "dvc.lock")}
    record = {"training": {"steps": 4, "seconds": 2.0}, "numbers": {"fd_efficientnet_lite0": 123.0}}
    commit = git.commit_point(reproduced.path, base, files, "sfd-seed-0", record)
    git.set_refs(reproduced.path, {"seeds/sfd-seed-0": commit})
    yield "refs/sfd/seeds/sfd-seed-0"
    reproduced.run("git", "update-ref", "-d", "refs/sfd/seeds/sfd-seed-0")


def test_the_status_shows_every_training_with_its_distance(reproduced: Project, ref: str, sfd: Command) -> None:
    printed, _ = sfd("status")
    rows = {line.split()[-1]: line for line in printed.splitlines()}
    assert {f"outputs/{place}" for place in ("texture_vae", "semantic_vae", "train/dit", "train/sfd", "train/repa")} < set(rows)
    measured = json.loads((reproduced.path / "outputs" / "evaluate" / "sfd" / "metrics.json").read_text())
    distance = f"{measured['fd_efficientnet_lite0']:,.0f} fd_efficientnet_lite0"
    assert re.match(rf"train@sfd +finished +4 of 4 +[\d.]+ steps/s +{distance}", rows["outputs/train/sfd"])
    assert re.match(r"train@sfd-seed-0 +finished +4 of 4 +2 steps/s +123 fd_efficientnet_lite0", rows[ref])


def test_a_git_ref_is_compared_with_the_project_from_the_cache(reproduced: Project, ref: str, sfd: Command) -> None:
    printed, _ = sfd("compare", "sfd", f"{ref}@repa", "--out", ".sfd/page.html")
    assert re.search(r"^variant.semantic +vae +none$", printed, re.MULTILINE)
    assert re.search(r"^sfd +[\d,.]+ .*\nrepa +[\d,.]+ ", printed, re.MULTILINE)
    assert "data:image/png" in (reproduced.path / ".sfd" / "page.html").read_text()
    same, _ = sfd("compare", "sfd", f"{ref}@sfd")
    assert "delta_t" not in same
    with pytest.raises(SystemExit) as ended:
        sfd("compare", "sfd", "HEAD")  # nothing was computed when that was committed
    assert ended.value.code == 2


def test_an_experiment_whose_results_were_cleaned_is_compared_from_the_cache(reproduced: Project, sfd: Command) -> None:
    folder = Path(".sfd/experiments/cleaned")
    folder.mkdir(parents=True)
    lock = folder.with_suffix(".lock")
    lock.touch()
    try:
        for name in ("params.yaml", "dvc.yaml", "dvc.lock"):
            shutil.copy2(name, folder)
        write_local_config(Path(), folder, scm=False)
        first, _ = sfd("compare", "sfd", "cleaned@repa")
        going = [item for item in find_clearable(Path(), False) if item.path.is_relative_to(folder)]
        assert [(item.path.name, item.why) for item in going] == [("outputs", "")]
        going[0].delete()
        assert sfd("compare", "sfd", "cleaned@repa")[0] == first
        assert sfd("compare", "sfd", f"{folder}@repa")[0].count("\n") == first.count("\n")
    finally:
        shutil.rmtree(folder)
        lock.unlink()


def test_the_notebook_runs_from_its_first_to_its_last_cell(reproduced: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(reproduced.path)
    cells = json.loads((ROOT / "docs" / "notebook.ipynb").read_text())["cells"]
    sources = ["".join(line for line in cell["source"] if line[0] != "%") for cell in cells if cell["cell_type"] == "code"]
    scope: dict[str, object] = {}
    shown = []
    for source in sources:
        *statements, last = ast.parse(source).body
        exec(compile(ast.Module(statements, []), "notebook", "exec"), scope)
        assert isinstance(last, ast.Expr)
        shown.append(eval(compile(ast.Expression(last.value), "notebook", "eval"), scope))
    assert [type(value).__name__ for value in shown].count("Figure") >= 3
    assert all(len(value) for value in shown if isinstance(value, pd.DataFrame))


def test_what_can_be_made_again_is_deleted_and_an_unfinished_training_is_not(reproduced: Project, tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    shutil.copytree(reproduced.path, project.path, symlinks=True)
    unfinished = project.path / ".sfd" / "resume" / "train" / "key" / "step-00000002"
    unfinished.mkdir(parents=True)
    (unfinished / "state").write_bytes(bytes(3_000_000))
    (project.path / "outputs" / "evaluate" / "sfd" / "metrics.json").write_text("{}")
    said = project.run("sfd", "clean").stdout
    assert re.search(r"^ +3\.0 MB  holds checkpoints.* \.sfd/resume$", said, re.MULTILINE)
    assert re.search(r"MB  DVC's cache lacks outputs/evaluate/sfd.* outputs$", said, re.MULTILINE)
    assert re.search(r"MB  can go +report$", said, re.MULTILINE)
    assert (project.path / "report").is_dir()

    project.run("dvc", "checkout", "--force", "outputs/evaluate/sfd/metrics.json")
    assert "MB deleted" in project.run("sfd", "clean", "--yes").stdout
    assert not (project.path / "outputs").exists()
    assert unfinished.exists()
    assert "nothing to delete" in project.run("sfd", "clean", "--yes").stdout
    project.run("dvc", "checkout")
    assert json.loads(project.run("dvc", "status", "--json").stdout) == {}

    with held(unfinished.parent, "training"):
        assert project.run("sfd", "clean", "--checkpoints").stdout.count("in work") >= 2
    assert "MB deleted" in project.run("sfd", "clean", "--checkpoints", "--yes").stdout
    assert not unfinished.exists()
