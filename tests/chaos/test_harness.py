"""That a kill which is lost is seen: a stage that does not continue as it should, and outputs that differ in one place."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from killing import AIMS, at_any_moment, kill_again_and_again, while_writing
from projects import Project
from safetensors.numpy import save_file
from same_outputs import differences
from stage_runs import Stage, StageServer

STAGE = """
import json, shutil, sys, time
from pathlib import Path

if __name__ == "__main__":
    flaw = sys.argv[2]
    work, out = Path(".sfd/resume/sum/key"), Path("outputs/sum") / flaw
    kept, partial = work / "step", work / ".step.partial"
    work.mkdir(parents=True, exist_ok=True)
    done, total = json.loads(kept.read_text()) if kept.exists() else (0, 0)
    if done:
        print("resumed after step", done)
        if flaw == "stumbles":
            sys.exit(1)
        if flaw == "repeats":
            done -= 1
    for step in range(done, 40):
        total += step
        partial.write_text(json.dumps([step + 1, total]))
        time.sleep(0.02)
        partial.replace(kept)
    temporary = out.parent / f".{flaw}.new.partial"
    temporary.mkdir(parents=True, exist_ok=True)
    (temporary / "total.json").write_text(json.dumps(total))
    shutil.rmtree(out, ignore_errors=True)
    temporary.rename(out)
    if flaw != "litters":
        shutil.rmtree(work)
"""
FEW: tuple = (*[at_any_moment] * 3, *[while_writing] * 2)


def stage_with(flaw: str, path: Path) -> tuple[Stage, Project, Path]:
    """Return a stage that adds up numbers, its project and what it writes when nothing breaks it off."""
    (path / "sfd_core" / "stages").mkdir(parents=True)
    for name, code in {"__init__": "", "stages/__init__": "", "stages/sum": STAGE}.items():
        (path / "sfd_core" / f"{name}.py").write_text(code)
    (path / "whole").mkdir()
    (path / "whole" / "total.json").write_text(json.dumps(sum(range(40))))
    return Stage("sum", ("--flaw", flaw)), Project(path), path / "whole"


def test_a_sound_stage_survives(tmp_path: Path) -> None:
    stage, project, whole = stage_with("none", tmp_path)
    with StageServer(stage, project) as server:
        tally = kill_again_and_again(server, whole, seed=0, continues="resumed after step", aims=FEW)
    assert (tally.kills, tally.survived, tally.lost, tally.troubles) == (5, 5, 0, [])
    assert tally.writing >= 1
    assert tally.continued >= 2


@pytest.mark.parametrize(("flaw", "trouble"), [("repeats", "total.json: value differs"), ("stumbles", "ended with code 1")])
def test_a_stage_that_does_not_continue_as_it_should_loses_kills(flaw: str, trouble: str, tmp_path: Path) -> None:
    stage, project, whole = stage_with(flaw, tmp_path)
    with StageServer(stage, project) as server:
        tally = kill_again_and_again(server, whole, seed=0, aims=FEW)
    assert tally.kills == 5
    assert tally.lost > 0
    assert any(trouble in found for found in tally.troubles)


def test_work_that_a_finished_stage_leaves_is_a_fault(tmp_path: Path) -> None:
    stage, project, whole = stage_with("litters", tmp_path)
    with StageServer(stage, project) as server, pytest.raises(AssertionError, match=r"resume/sum/key is left"):
        kill_again_and_again(server, whole, seed=0, aims=FEW)


def test_twenty_kills_a_stage_some_of_them_while_it_writes() -> None:
    assert len(AIMS) == 20
    assert {at_any_moment, while_writing} < set(AIMS)


def write_outputs(folder: Path, bit: int = 0, loss: float = 0.5, seconds: float = 1.0, name: str = "sfd") -> Path:
    folder.mkdir()
    weights = np.arange(6, dtype=np.float32).reshape(2, 3)
    weights.view(np.uint32)[1, 2] ^= bit
    save_file({"weight": weights}, folder / "model.safetensors", metadata={"seconds": str(seconds), "name": name})
    (folder / "metrics.json").write_text(json.dumps({"loss": loss, "rows": [{"seconds": seconds}]}))
    with (folder / "history.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["step", "seconds", "loss"], [1, seconds, loss]])
    np.savez(folder / "samples.npz", images=weights)
    return folder


def test_outputs_differ_in_a_bit_a_number_a_row_or_a_file(tmp_path: Path) -> None:
    one, times = write_outputs(tmp_path / "one"), {"seconds"}
    assert differences(one, write_outputs(tmp_path / "same", seconds=2.0), times) == []
    assert differences(one, write_outputs(tmp_path / "bit", bit=1), times) == [
        "model.safetensors: tensor weight differs",
        "samples.npz: array images differs",
    ]
    assert differences(one, write_outputs(tmp_path / "loss", loss=0.25), times) == [
        "history.csv: column loss differs",
        "metrics.json: loss differs",
    ]
    assert differences(one, write_outputs(tmp_path / "header", name="sync"), times) == [
        "model.safetensors: header name differs"
    ]
    assert len(differences(one, write_outputs(tmp_path / "time", seconds=2.0))) == 3
    longer = write_outputs(tmp_path / "longer")
    with (longer / "history.csv").open("a") as file:
        file.write("2,1.0,0.5\n")
    assert "history.csv: rows differs" in differences(one, longer, times)
    (longer / "samples.npz").unlink()
    assert f"samples.npz is only in {one}" in differences(one, longer, times)
