"""What counts as the code of a stage, and what does not."""

import ast
import gc
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from sfd_core.experiment.code import PACKAGE, pipeline_code, require_recorded_code, stage_code, stage_names
from sfd_core.host.errors import ConfigError

MODULE = '''"""A module."""
from sfd_core.errors import DataError

FACTOR: float = 2.0
"""Of everything."""


def double(x: float, name: str = "x") -> float:
    """Return twice as much."""
    if x < 0:
        raise DataError(f"{name} is {x}, which is negative; give a positive number")
    print(f"doubling {x}")
    return FACTOR * x  # twice
'''


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A small package with two stages; `two` imports lazily, by name, a template and what cannot change a result."""
    files = {
        "__init__": '"""All."""\n',
        "stages/__init__": "",
        "stages/one": 'from sfd_core.maths import double\n\nif __name__ == "__main__":\n    print(double(1.0))\n',
        "stages/two": "import importlib\n\n\ndef run():\n    from sfd_core.lazy import value\n    from sfd_core import watch\n"
        '    return importlib.import_module("sfd_core.named"), value, watch\n\n\nif __name__ == "__main__":\n    run()\n',
        "maths": MODULE,
        "errors": 'SHAPES_RESULTS = False\n\n\nclass DataError(Exception):\n    """Bad data."""\n',
        "lazy": "import numpy as np\n\nvalue = np.ones(1)\n",
        "named": "value = 1\n",
        "watch/__init__": "import yaml\n\nfrom sfd_core.watched import told\n\nSHAPES_RESULTS = False\n",
        "watch/clock": "seconds = 1\n",
        "watched": "told = 1\n",
    }
    root = tmp_path / PACKAGE
    for name, text in files.items():
        (root / f"{name}.py").parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.py").write_text(text)
    (root / "stages" / "page.js").write_text("draw()")
    return root


def changed(package: Path, file: str, edit: Callable[[str], str]) -> Path:
    """Return a copy of the package in which one file is edited."""
    copy = package.parent / f"copy-{len(list(package.parent.iterdir()))}" / PACKAGE
    shutil.copytree(package, copy)
    before = (copy / file).read_text()
    (copy / file).write_text(edit(before))
    assert (copy / file).read_text() != before
    return copy


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# twice", "# two times"),
        ('"""Return twice as much."""', '"""Return the double."""'),
        ('"""Of everything."""', ""),
        ("x: float, name: str", "x, name"),
        (") -> float:", ") -> int:"),
        ("FACTOR: float = 2.0", "FACTOR: int = 2.0"),
        ("which is negative; give a positive number", "but must be positive"),
        ('print(f"doubling {x}")', 'print(f"twice {x!r}")'),
        ("if x < 0:", "if (x < 0):"),
        ('"x") ->', "'x') ->"),
    ],
)
def test_words_and_types_do_not_count(package: Path, old: str, new: str) -> None:
    edited = changed(package, "maths.py", lambda text: text.replace(old, new))
    assert stage_code("one", edited) == stage_code("one", package)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("FACTOR: float = 2.0", "FACTOR: float = 3.0"),
        ("x < 0", "x <= 0"),
        ("FACTOR * x", "x * FACTOR"),
        ('name: str = "x"', 'name: str = "y"'),
        ("raise DataError", "raise ValueError"),
        ('    print(f"doubling {x}")\n', ""),
        ("return FACTOR * x", "return FACTOR * x + 0"),
    ],
)
def test_everything_else_counts(package: Path, old: str, new: str) -> None:
    edited = changed(package, "maths.py", lambda text: text.replace(old, new))
    before, after = stage_code("one", package), stage_code("one", edited)
    assert after.hash != before.hash
    assert before.differences(after) == ["sfd_core.maths"]
    assert stage_code("two", edited) == stage_code("two", package)
    for root in (package, edited):
        (root.parent / "dvc.yaml").write_text("stages: {}")
    assert pipeline_code(edited.parent) != pipeline_code(package.parent)


def test_words_count_where_something_is_done_with_them(package: Path) -> None:
    def hash_of(text: str) -> str:
        return stage_code("one", changed(package, "maths.py", lambda before: before + text)).hash

    assert hash_of("\nlog('a')\n") == hash_of("\nlog('b')\n")
    assert hash_of("\nasync def a() -> int: ...\n") == hash_of("\nasync def a() -> float: ...\n")
    assert hash_of("\nx = log('a')\n") != hash_of("\nx = log('b')\n")
    assert hash_of("\nparser.add_argument('x', help='a')\n") == hash_of("\nparser.add_argument('x', help='b')\n")
    assert hash_of("\nparser.add_argument('x', default='a')\n") != hash_of("\nparser.add_argument('x', default='b')\n")
    assert hash_of("\nclass A:\n    x: ClassVar[int] = 1\n") != hash_of("\nclass A:\n    x: int = 1\n")
    unseen = "\nif TYPE_CHECKING:\n    import a\nelse:\n    x = 1\n"
    assert hash_of(unseen) == hash_of(unseen.replace("import a", "import b")) != hash_of(unseen.replace("1", "2"))


def test_what_an_editor_leaves_does_not_count(package: Path) -> None:
    copy = changed(package, "maths.py", lambda text: text + "# a comment\n")
    for name in (".maths.py.swp", "maths.py~", ".DS_Store", "notes.ipynb", ".hidden.js"):
        (copy / name).write_text("x")
    (copy / "watch" / "style.css").write_text("of a package that is not imported")
    assert stage_code("one", copy) == stage_code("one", package)


def test_a_stage_refuses_to_run_as_other_code_than_is_recorded(tmp_path: Path) -> None:
    code, recorded = stage_code("report"), tmp_path / "report.json"
    require_recorded_code("report", recorded)
    recorded.write_text(json.dumps(asdict(code)))
    require_recorded_code("report", recorded)
    recorded.write_text(json.dumps(asdict(replace(code, libraries={**code.libraries, "pandas": "0.0"}))))
    with pytest.raises(ConfigError, match=r"pandas 0\.0 -> .*dvc repro --force code"):
        require_recorded_code("report", recorded)


def test_lazy_relative_and_imports_by_name_and_files_beside_code_count(package: Path) -> None:
    code = stage_code("two", package)
    assert set(code.modules) == {
        "sfd_core", "sfd_core.stages", "sfd_core.stages.two", "sfd_core.lazy", "sfd_core.named", "sfd_core/stages/page.js",
    }  # fmt: skip
    assert set(code.libraries) == {"numpy"}
    by_name = 'import importlib\n\nnames = ["sfd_core.lazy:value", "yaml"]\n'
    more = stage_code("one", changed(package, "maths.py", lambda text: text + by_name))
    assert "sfd_core.lazy" in more.modules
    assert set(more.libraries) == {"numpy", "PyYAML"}
    beside = stage_code("one", changed(package, "maths.py", lambda text: text + "\nfrom .lazy import value\n"))
    above = stage_code("one", changed(package, "stages/one.py", lambda text: text + "\nfrom .. import lazy\n"))
    assert "sfd_core.lazy" in beside.modules.keys() & above.modules.keys()
    page = changed(package, "stages/page.js", lambda text: text + "draw()")
    assert code.differences(stage_code("two", page)) == ["sfd_core/stages/page.js"]


def test_what_a_module_declares_holds_for_its_package_and_for_what_only_it_imports(package: Path) -> None:
    for file in ("watch/__init__.py", "watch/clock.py", "watched.py", "errors.py"):
        edited = changed(package, file, lambda text: text + "\nmore = 1\n")
        assert stage_code("two", edited) == stage_code("two", package)
    shaping = changed(package, "watch/clock.py", lambda text: text + "\nSHAPES_RESULTS = True\n")
    imported = changed(shaping, "lazy.py", lambda text: text + "\nfrom sfd_core.watch.clock import seconds\n")
    assert "sfd_core.watch.clock" in stage_code("two", imported).modules
    assert "sfd_core.watch" not in stage_code("two", imported).modules


def test_code_that_is_parsed_while_garbage_is_collected_does_no_harm(package: Path) -> None:
    def parse(phase: str, _: dict[str, int]) -> None:  # as the traceback of another thread's error does
        ast.parse(f"phase = {phase!r}")

    (package / "maths.py").write_text(MODULE + "value = [double(1.0), {2: 3}]\n" * 1000)
    gc.callbacks.append(parse)
    try:
        assert stage_code("one", package).modules
    finally:
        gc.callbacks.remove(parse)
    assert gc.isenabled()


def test_the_version_of_a_library_counts(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = stage_code("two", package)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0")
    after = stage_code("two", changed(package, "stages/one.py", lambda text: text + "\n"))
    assert before.differences(after) == [f"numpy {before.libraries['numpy']} -> 0.0"]


def test_every_stage_has_code_and_libraries() -> None:
    assert {"prepare", "train", "evaluate", "report"} <= set(stage_names())
    train = stage_code("train")
    assert {
        "sfd_core.stages.train",
        "sfd_core.diffusion.schedule",
        "sfd_core.host.seeding",
        "sfd_core.experiment.sizes",
    } <= set(train.modules)
    assert {"torch", "numpy", "accelerate", "safetensors"} <= set(train.libraries)
    assert not {"mlflow", "boto3", "pydantic"} & set(train.libraries)
    assert not [name for name in train.modules if name.startswith(("sfd_core.tracking", "sfd_core.storage", "sfd_core.cli"))]
    assert {"torch_fidelity", "diffusers"} <= set(stage_code("evaluate").libraries)
    assert "sfd_core/reporting/page/style.css" in stage_code("report").modules
