"""Every command that documents, presets, helps and messages name is one: programs, options, targets, stages and files exist."""

import importlib.util
import inspect
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from cyclopts import CycloptsError, MissingArgumentError
from dvc.cli import DvcParserError
from dvc.cli.parser import get_main_parser

from flows.worker import DEPLOYED
from infra.lab.settings import Settings
from sfd_core.cli.main import app
from sfd_core.experiment.params import parse_params
from sfd_core.workspace import experiments
from sfd_core.workspace.experiments import Plan

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "infra" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PRESETS = sorted((ROOT / "presets").glob("*.yaml"))
SOURCES = [path for room in ("sfd_core", "flows", "infra") for path in sorted((ROOT / room).rglob("*.py"))]
SOURCES += [ROOT / "Makefile", *(ROOT / "infra").rglob("*.sbatch")]
PROGRAMS = "sfd|make|dvc|git|python|torchrun|prefect|sbatch|docker"
FENCED = re.compile(r"^```(?:bash|console|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(rf"`((?:[A-Z_]+=\S+ )*(?:{PROGRAMS}) [^`{{]+)`")
SHELL = {"mkdir", "cp", "cd", "git"}
"""Programs of every machine."""
MADE = {".venv/bin/activate", ".sfd/lab/env"}
"""What `make` and `make up` write."""
WRITTEN = {"--out", "--table", "--curves", "--studies", "--npz", "--png", "--html"}
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
MAKEFILE = (ROOT / "Makefile").read_text()


def simple_commands(text: str) -> Iterator[list[str]]:
    """Yield the words of every command of a line, without the variables before it."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set(";&|()"):
            while words and re.match(r"[A-Z_]+=", words[0]):
                words.pop(0)
            if words:
                yield words
            words = []
        else:
            words.append(word)


def require_sfd(words: list[str], whole: bool) -> None:
    try:
        app.parse_args(words)
    except MissingArgumentError:
        assert not whole, words


def require_make(words: list[str], _: bool) -> None:
    variables = set(re.findall(r"^(\w+) \?=|\$\((\w+)\)", MAKEFILE, re.MULTILINE))
    known = {name for pair in variables for name in pair} | {Settings.variable(name) for name in Settings.model_fields}
    for word in words:
        name, assigned, _ = word.partition("=")
        assert name in (known if assigned else re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE)), word


def require_dvc(words: list[str], _: bool) -> None:
    parsed = get_main_parser().parse_args(words)
    for target in getattr(parsed, "targets", None) or []:
        if parsed.cmd in {"repro", "status", "commit"}:
            assert target.partition("@")[0] in STAGES, target


def require_python(words: list[str], _: bool) -> None:
    assert words[0] == "-m", words
    if words[1] == "sfd_core.cli":
        require_sfd(words[2:], whole=True)
        return
    found = importlib.util.find_spec(words[1])
    assert found, words
    for option in words[2:]:
        assert option.partition("=")[0] in Path(str(found.origin)).read_text(), words


def require_torchrun(words: list[str], _: bool) -> None:
    require_python(words[words.index("-m") :], True)


def require_prefect(words: list[str], _: bool) -> None:
    if words[:2] == ["deployment", "run"]:
        flow = DEPLOYED[words[2].partition("/")[2]]
        given = [word.partition("=")[0] for option, word in pairwise(words) if option == "--param"]
        assert set(given) <= set(inspect.signature(flow.fn).parameters), words


def only_files(words: list[str], _: bool) -> None:
    """Nothing of this program is checked but the files that it is given."""


CHECKS: dict[str, Callable[[list[str], bool], None]] = {
    "sfd": require_sfd,
    "make": require_make,
    "dvc": require_dvc,
    "python": require_python,
    "torchrun": require_torchrun,
    "prefect": require_prefect,
    **dict.fromkeys(("sbatch", "docker", "source", *SHELL), only_files),
}


def require_command(line: str, whole: bool = True) -> None:
    """Fail unless everything that a line names exists; of a part of a command (not `whole`), arguments may be missing."""
    if line.startswith("for "):
        return  # test_the_shell_understands_every_block
    for program, *words in simple_commands(line):
        CHECKS[program](words, whole)
        for option, word in zip(["", *words], words, strict=False):
            file = word.partition("=")[2] or word
            if re.match(r"(presets|infra|docs|tests|flows|sfd_core)/", file) and option not in WRITTEN:
                assert (ROOT / file).exists(), line
            assert program != "source" or file in MADE, line


def block_lines(document: Path) -> list[str]:
    lines = [line for block in FENCED.findall(document.read_text()) for line in block.splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.strip() and not line.startswith("#")]


def preset_lines(preset: Path) -> list[str]:
    (run,) = re.findall(r"^# Run +(.*)", preset.read_text(), re.MULTILINE)
    return [part.partition("#")[0] for part in run.split(", or ")]


def source_lines(source: Path) -> list[str]:
    text = source.read_text()
    lines = [*INLINE.findall(text), *re.findall(r"^#? +((?:torchrun|python -m|sbatch|sfd) [^\[\"\n]+)$", text, re.MULTILINE)]
    return [line for line in lines if not line.endswith("...") and " | " not in line]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_of_a_document_exists(document: Path) -> None:
    for line in block_lines(document):
        require_command(line)
    for line in INLINE.findall(document.read_text()):
        require_command(line, whole=False)


def test_every_command_of_presets_and_of_the_sources_texts_exists() -> None:
    for line in [line for preset in PRESETS for line in preset_lines(preset)]:
        require_command(line)
    found = [line for source in SOURCES for line in source_lines(source)]
    assert len(found) > 50
    for line in found:
        require_command(line, whole=False)


def test_the_search_finds_commands() -> None:
    assert len(block_lines(ROOT / "README.md")) > 20
    assert "sfd evaluate --from" in INLINE.findall((ROOT / "README.md").read_text())
    assert any("torchrun" in line for line in source_lines(ROOT / "sfd_core" / "cli" / "evaluation.py"))


@pytest.mark.parametrize(
    "line",
    [
        "make nowhere", "make seeds SEED=1", "sfd sample sfd --sede 1", "smaple sfd", "sfd smaple sfd", "sfd preset install",
        "sfd validate a b", "dvc reprro", "dvc repro nothing@sfd", "sbatch infra/slurm/none.sbatch", "python -m flows.none",
        "python -m flows.deployments --pionts", "prefect deployment run 'sweep/sweep' --param delta=3", "source env",
        "prefect deployment run 'swep/swep'", "torchrun -m sfd_core.cli evaluate sfd --sample 3", "curl x", "cd . && make x",
    ],
)  # fmt: skip
def test_a_command_that_does_not_exist_would_be_noticed(line: str) -> None:
    with pytest.raises((AssertionError, KeyError, CycloptsError, DvcParserError)):
        require_command(line)


@pytest.mark.parametrize("document", ["README.md", "docs/imagenet.md"])
def test_light_commands_run_and_experiments_can_be_planned(
    document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy2(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    monkeypatch.chdir(tmp_path)
    plans: list[Plan] = []

    def planned(plan: Plan, *_: object) -> None:
        parse_params(plan.values)
        plans.append(plan)
        raise InterruptedError

    monkeypatch.setattr(experiments, "run_experiment", planned)
    text = (ROOT / document).read_text()
    for line in [*block_lines(ROOT / document), *(line for line in INLINE.findall(text) if "--vary" in line)]:
        words = shlex.split(line, comments=True)
        if words[:2] in (["sfd", "preset"], ["sfd", "validate"]):
            app(words[1:])
        elif words[:2] == ["sfd", "experiment"]:
            with pytest.raises(InterruptedError):
                app(words[1:])
    assert plans


def test_every_link_of_a_document_leads_somewhere() -> None:
    targets = {path: re.findall(r"\]\(([^)#:\s]*(?:#[^)\s]*)?)\)", path.read_text()) for path in DOCUMENTS}
    assert targets[ROOT / "README.md"]
    for document in DOCUMENTS:
        for target in targets[document]:
            name, _, heading = target.partition("#")
            file = document.parent / name if name else document
            assert file.exists(), f"{document}: {target}"
            headings = (
                [re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in headings_of(file)] if heading else []
            )
            assert not heading or heading in headings, f"{document}: {target}"


def headings_of(document: Path) -> list[str]:
    return re.findall(r"^#+ (.*)", document.read_text(), re.MULTILINE)


def test_the_shell_understands_every_block() -> None:
    assert FENCED.search((ROOT / "README.md").read_text())
    for document in DOCUMENTS:
        for block in FENCED.findall(document.read_text()):
            ended = subprocess.run(["bash", "-n", "-c", block], capture_output=True, text=True, check=False)
            assert ended.returncode == 0, ended.stderr


def test_the_command_and_the_module_are_one() -> None:
    for command in ([str(Path(sys.executable).parent / "sfd")], [sys.executable, "-m", "sfd_core.cli"]):
        ended = subprocess.run([*command, "validate"], cwd=ROOT, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
