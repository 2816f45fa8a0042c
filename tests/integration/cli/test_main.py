"""The command line as a whole: what it imports, how it reads options, and how it answers mistakes."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sfd_core.cli.experiment import use_preset
from sfd_core.cli.main import app, run
from sfd_core.host.errors import ConfigError

ROOT = Path(__file__).parents[3]
HEAVY = {"torch", "mlflow", "prefect", "pandas", "dvc", "boto3", "numpy", "matplotlib", "scipy"}


def parsed(*words: str) -> dict[str, Any]:
    return dict(app.parse_args(words)[1].arguments)


def imported_by(program: str) -> set[str]:
    """Run a program that ends with `sfd` commands in a new process, and return which packages it imported."""
    words = "import sys\nfrom sfd_core.cli.main import app, run\n" + program + "\nprint(*sys.modules, file=sys.stderr)"
    ended = subprocess.run([sys.executable, "-c", words], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout
    return set(ended.stderr.split())


def test_no_help_imports_more_than_the_command_line_itself() -> None:
    names = [(name,) for name in app if not name.startswith("-")]
    names += [(group, name) for group in ("preset", "curve") for name in app[group] if name[0] != "-"]
    assert len(names) > 15
    program = f"for words in {[(), *names]}: app([*words, '--help'])"
    assert (
        imported_by(program) & (HEAVY | {"pydantic", "yaml", "ruamel", "tqdm", "psutil", "jinja2", "PIL", "asyncio"}) == set()
    )


@pytest.mark.parametrize("words", [["validate"], ["preset", "check"]])
def test_light_commands_import_no_heavy_package(words: list[str]) -> None:
    assert imported_by(f"sys.argv[1:] = {words}; run()") & HEAVY == set()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "name a command"),
        (["preset"], "name a command"),
        (["curve"], "name a command"),
        (["smaple"], 'Did you mean "sample"'),
        (["preset", "install"], "Available commands: list, show, check, use"),
        (["sample"], "ARTIFACT"),
        (["sample", "sfd", "--nope", "3"], "--nope"),
        (["sample", "sfd", "--no-labels"], "--no-labels"),
        (["sample", "sfd", "--seed", "2.5"], "--seed"),
        (["sample", "sfd", "--solver", "rk4"], '"euler", "heun", "ab2", "dopri5"'),
        (["sample", "sfd", "--labels"], "--labels requires at least 1"),
        (["sample", "sfd", "--texture-interval", "0"], "--texture-interval requires 2"),
        (["guidance-curve", "sfd", "--out", "x"], "--scales"),
        (["guidance-curve", "sfd", "--scales", "1", "--intervals", "0.1", "--out", "x"], "--intervals '0.1'"),
        (["solvers", "sfd", "--solver", "heun", "--out", "x"], "--solvers"),
        (["import", "sfd", "1.pt", "--out", "x", "--encode", "y", "--statistics", "z"], "--encode, --statistics"),
        (["experiment", "new", "--set", "a=1", "b=2"], "b=2"),
        (["experiment", "new", "--vary", "seed"], "--vary seed names no value"),
        (["experiment", "new", "--variants", "dit", "--vary", "delta_t", "0", "0.3"], "delta_t cannot vary in dit"),
        (["experiment", "new", "--variants", "sfd", "--set", 'active=["dit"]'], "--variants and --set active"),
        (["validate", "a", "b"], "'b'"),
        (["validate", "."], ". cannot be read: Is a directory"),
        (["validate", "nowhere.yaml"], "nowhere.yaml does not exist"),
        (["sample", "sfd", "--columns", "0"], "--columns"),
        (["sample", "sfd", "--count", "-3"], "--count"),
        (["sample", "sfd", "--evaluations", "0"], "--evaluations"),
        (["sample", "sfd", "--out", "docs"], "docs is a folder"),
        (["sample", "sfd", "--out", "README.md/samples.png"], "README.md is no folder"),
        (["evaluate", "sfd", "--samples", "4"], "--samples"),
        (["evaluate", "sfd", "--out", "docs"], "docs is a folder"),
        (["evaluate", "sfd", "--png", "README.md"], "README.md is a file"),
        (["guidance-curve", "sfd", "--scales", "1", "--out", "README.md"], "README.md is a file"),
        (["import", "sfd", "1.pt", "--out", "new", "--batch-size", "0"], "--batch-size"),
        (["import", "sfd", "1.pt", "--out", "README.md/x"], "README.md is no folder"),
        (["experiment", "new", "--table", "docs"], "docs is a folder"),
        (["reproduce", "--at-once", "0"], "--at-once"),
        (["sample", "sfd", "--out", "9" * 400], "File name too long"),
        (["sample", "sfd", "--out", "9" * 250], "is no folder that can be written"),
        (["evaluate", "sfd", "--out", "/proc/numbers.json"], "/proc is no folder that can be written"),
        (["sample", "sfd", "--texture-interval", "0.2", "0.6"], "--texture-interval would change nothing"),
        (
            ["guidance-curve", "sfd", "--scales", "1", "--texture-scale", "3", "--out", "x"],
            "--texture-scale would change nothing",
        ),
        (["sample", "sfd", "--count", "1000000000"], "--count"),
        (["sample", "sfd", "--columns", "1000000000"], "--columns"),
        (["sample", "sfd", "--seed", str(2**62)], "--seed"),
        (["sample", "sfd", "--seed", "-1"], "--seed"),
        (["sample", "sfd", "--evaluations", str(10**30)], "--evaluations"),
        (["sample", "sfd", "--snapshot", "-5"], "--snapshot"),
        (["sample", "sfd", "--guide-step", "0"], "--guide-step"),
        (["sample", "sfd", "--shift", "nan"], "shift"),
        (["sample", "sfd", "--texture-scale", "-1"], "scale"),
        (["sample", "sfd", "--texture-interval", "0", "inf"], "interval"),
        (["sample", "sfd", "--delta-t", "nan"], "delta_t"),
        (["evaluate", "sfd", "--samples", "1000000000"], "--samples"),
        (["guidance-curve", "sfd", "--scales", "nan", "--guidance", "cfg", "--out", "x"], "scale"),
        (["guidance-curve", "sfd", "--scales", "1", "--evaluations", "0", "--out", "x"], "--evaluations"),
        (["guidance-curve", "sfd", "--scales", "2", "--guidance", "cfg", "--intervals", "0,nan", "--out", "x"], "interval"),
        (["path-curve", "any_order", "--offsets", "inf", "--out", "x"], "delta_t"),
        (["solvers", "sfd", "--target", "0", "--out", "x"], "--target"),
        (["import", "sfd", "1.pt", "--out", "new", "--step", "-1"], "--step"),
        (["import", "sfd", "1.pt", "--out", "new", "--step", str(10**30)], "--step"),
        (["import", "sfd", f"{'9' * 30}.pt", "--out", "new"], "give --step"),
        (["import", "sfd", "1.pt", "--out", "new", "--batch-size", str(10**30)], "--batch-size"),
        (["import", "sfd", "1.pt", "--out", "new", "--num-classes", "-3"], "--num-classes"),
        (["import", "sfd", "1.pt", "--out", "new", "--num-classes", str(10**30)], "--num-classes"),
        (["import", "sfd", "1.pt", "--out", "new", "--delta-t", "nan"], "--delta-t"),
        (["import", "sfd", "1.pt", "--out", "new", "--delta-t", "-0.1"], "--delta-t"),
        (["import", "lightningdit", "1.pt", "--out", "new", "--delta-t", "0.2"], "--delta-t 0.2 changes nothing"),
        (
            ["import", "sfd", "1.pt", "--out", "new", "--texture-vae", "vae"],
            "--texture-vae changes nothing without --statistics",
        ),
        (["experiment", "new", "--at-once", "-1"], "--at-once"),
        (["curve", "record", "sfd", "--out", ".sfd/none.csv"], "sfd is one variant"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    words: list[str], named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["sfd", *words])
    with pytest.raises(SystemExit) as ended:
        run()
    printed = capsys.readouterr()
    assert (ended.value.code, printed.out) == (2, "")
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert named in printed.err


def test_a_folder_with_code_of_its_own_is_run_by_it(tmp_path: Path) -> None:
    """Such as a copy of the project whose environment is that of the original."""
    (tmp_path / "sfd_core" / "cli").mkdir(parents=True)
    (tmp_path / "sfd_core" / "__init__.py").touch()
    (tmp_path / "sfd_core" / "cli" / "__main__.py").write_text("import sys\nprint('own code', sys.argv[1:])\n")
    command = [str(Path(sys.executable).parent / "sfd"), "sample", "a b", "--seed", "3"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ended.stdout == "own code ['sample', 'a b', '--seed', '3']\n"


def test_options_take_as_many_values_as_they_are_given() -> None:
    words = ["guidance-curve", "sfd", "--scales", "1", "2.5", "--intervals", "0,1", "0.3,1", "--evaluations", "3", "4"]
    given = parsed(*words, "--out", "x", "--texture-interval", "0", "1", "--shift", "-1")
    assert (given["scales"], given["intervals"], given["evaluations"]) == ([1.0, 2.5], ["0,1", "0.3,1"], [3, 4])
    assert (given["drawing"].texture_interval, given["drawing"].shift, given["out"]) == ((0.0, 1.0), -1.0, Path("x"))
    assert parsed("sample", "sfd", "--labels", "Food & Drink", "0", "--count", "2")["labels"] == ["Food & Drink", "0"]
    assert parsed("sweep-figure", "table.csv", "--out", "x", "--over")["over"] == []
    assert "names" not in parsed("preset", "check")
    assert parsed("preset", "check", "dit", "sfd")["names"] == ("dit", "sfd")


def test_an_assignment_is_repeated_and_takes_one_value() -> None:
    words = ["experiment", "--set", 'active=["sfd"]', "--set", "train.note=a=b", "new", "--vary", "delta_t", "0", "[1, 2]"]
    assert parsed(*words) == {
        "name": "new", "changes": ['active=["sfd"]', "train.note=a=b"], "vary": ["delta_t", "0", "[1, 2]"],
    }  # fmt: skip


@pytest.mark.parametrize("words", [["evaluate"], ["evaluate", "sfd"], ["evaluate", "--from", "numbers.json", "sfd"]])
def test_the_artifact_of_an_evaluation_may_be_left_out(words: list[str]) -> None:
    assert parsed(*words).get("artifact") == ("sfd" if "sfd" in words else None)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_complete_commands_and_options(shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    app(["--install-completion", "--shell", shell, "--output", str(tmp_path / "completion")])
    script = (tmp_path / "completion").read_text()
    for word in ("guidance-curve", "preset", "texture-interval", "dopri5"):
        assert word in script


def test_the_help_is_plain_text_that_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    app(["--help"])
    printed = capsys.readouterr().out
    assert printed.isascii()
    commands = ["sample", "evaluate", "guidance-curve", "solvers", "sweep-figure", "import", "validate", "results", "track"]
    commands += ["status", "compare", "curve", "clean"]
    for name in [*commands, "dashboard", "experiment", "preset", "--version", "--help", "--install-completion"]:
        assert f"  {name}" in printed


def test_a_preset_overwrites_no_values_that_lie_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "presets", "presets")
    params = Path("params.yaml")
    use_preset("avatars")
    use_preset("emoji")  # those of preset avatars are not lost
    mine = params.read_text().replace("snapshots: ", "snapshots: 1")
    params.write_text(mine)
    with pytest.raises(ConfigError, match=r"neither Git nor a preset has.*; commit it, move it to presets/NAME.yaml"):
        use_preset("sfd")
    assert params.read_text() == mine

    subprocess.run(["git", "init", "--quiet"], check=True)
    with pytest.raises(ConfigError, match="commit it"):
        use_preset("sfd")
    subprocess.run(["git", "add", "params.yaml"], check=True)
    use_preset("sfd")
    params.write_text(mine + "\n")
    params.rename("presets/mine.yaml")
    use_preset("avatars")
    assert params.read_text() == Path("presets/avatars.yaml").read_text()
