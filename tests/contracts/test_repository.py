"""What is true of the tracked files as a whole: the lock, the addresses they hold, the targets of make."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
if not (ROOT / ".git").exists():
    pytest.skip("this tree is no clone", allow_module_level=True)
TRACKED = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")[
    :-1
]
SEP = "/"
FOREIGN = re.compile(
    "|".join(
        (f"{SEP}simple{SEP}", "pypi" + r"\.org", "pythonhosted" + r"\.org", f"(?<![.\\w]){SEP}(?:root|home|work|Users){SEP}")
    )
)
"""Package indexes and folders of one machine."""


def requirements() -> list[str]:
    """Return every pinned requirement of the lock with its hashes."""
    text = (ROOT / "requirements.lock").read_text()
    return [block for block in re.split(r"^(?=[^\s#])", text, flags=re.MULTILINE) if block and not block.startswith("#")]


def test_every_package_of_the_lock_is_pinned_and_hashed() -> None:
    blocks = requirements()
    assert len(blocks) > 100
    for block in blocks:
        assert re.match(r"[A-Za-z0-9._\[\],-]+==[^\s;]+", block), block
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", block), block


def test_the_lock_names_no_index() -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    assert "--index" not in text
    assert "--find-links" not in text


def test_the_lock_covers_what_the_project_asks_for() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    wanted = {
        re.split(r"[\[<>=]", line.strip().strip('",'))[0]
        for line in project.splitlines()
        if re.match(r'  "[a-z].*[<>=].*",$', line)
    }
    locked = {re.split(r"[\[=]", block)[0] for block in requirements()}
    assert wanted
    assert wanted <= locked


def test_no_tracked_file_names_a_package_index_or_a_folder_of_one_machine() -> None:
    for path in filter(Path.is_file, (ROOT / name for name in TRACKED)):
        content = path.read_bytes()
        if b"\0" not in content[:8000]:
            found = FOREIGN.search(content.decode())
            assert found is None, f"{path}: {found}"


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_make_help_lists_every_target_but_no_other() -> None:
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^make ([a-z-]+)", shown, re.MULTILINE)) == make_targets()


@pytest.mark.parametrize("moved", [False, True])
def test_an_environment_that_was_copied_from_another_folder_is_made_anew(tmp_path: Path, moved: bool) -> None:
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    made_in = tmp_path / "original" if moved else tmp_path
    (tmp_path / ".venv" / "bin" / "sfd").write_text(f"#!{made_in}/.venv/bin/python\n")
    (tmp_path / ".venv" / ".set-up").touch()
    shown = subprocess.run(
        ["make", "-n", "--no-print-directory", "setup"], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert shown.startswith("rm -rf .venv\n") == moved
    assert ("uv pip sync" in shown) == moved


def test_continuous_integration_runs_the_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert re.search(r"^make test$", script.read_text(), re.MULTILINE)
