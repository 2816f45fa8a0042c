"""Where a test belongs: tests/unit mirrors sfd_core and starts neither a process nor a server."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "tests" / "unit"
STARTING = {"subprocess.run", "subprocess.Popen", "subprocess.check_output", "subprocess.check_call", "os.fork", "os.system"}
SERVERS = {"answering", "faulty_proxy", "postgresql", "seaweed", "laboratory", "http.server", "multiprocessing"}


def offences(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in STARTING:
            yield f"{path.relative_to(ROOT)}:{node.lineno} calls {ast.unparse(node.func)}"
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (f"{path.relative_to(ROOT)}:{node.lineno} imports {name}" for name in modules if name in SERVERS)


def test_unit_tests_start_no_process_and_no_server() -> None:
    files = list(UNIT.rglob("*.py"))
    assert len(files) > 50
    assert [offence for path in files for offence in offences(path)] == []


@pytest.mark.parametrize(
    "line", ["import seaweed", "from http.server import HTTPServer", "import subprocess\nsubprocess.run(['ls'])", "os.fork()"]
)
def test_a_unit_test_that_starts_something_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "test_a.py").write_text(line)
    assert len(list(offences(tmp_path / "test_a.py"))) == 1


def test_folders_of_unit_tests_are_packages_of_the_product() -> None:
    folders = {path.parent.relative_to(UNIT) for path in UNIT.rglob("test_*.py")}
    assert folders
    assert [folder for folder in folders if not (ROOT / "sfd_core" / folder).is_dir()] == []
