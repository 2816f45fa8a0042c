"""Which code made a result: the one place that answers, for DVC, resumed work, sweeps and MLflow.

A stage's code is what its file imports inside `sfd_core`, directly or not, now or only when a function runs. Each module counts
by its meaning: a hash of its syntax tree without comments, docstrings, annotations and the text of messages. Besides count the
files that a package carries (templates, tables) and the versions of the libraries that these modules import.

A module that cannot change a result says so itself, by `SHAPES_RESULTS = False`: parameters, which DVC compares by value, and
what checks, reports, locks, stores or tracks. In the `__init__` of a package it holds for all modules below that do not say
otherwise. Such modules, and what only they import, do not count.
"""

import ast
import gc
import hashlib
import importlib.metadata
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

from sfd_core.host.errors import ConfigError
from sfd_core.host.resume import MOST_NAMED, Code

PACKAGE = "sfd_core"
STAGES = f"{PACKAGE}.stages"
SOURCES = Path(__file__).parents[1]
"""The package that is running."""
NOT_INSTALLED = "not installed"
"""Instead of the version of a library that this Python does not have."""
_DECLARATION = "SHAPES_RESULTS"
_ERRORS = re.compile(r"(Error|Warning|Exception|Preempted)$")
_REPORTS = frozenset({"print", "warn", "debug", "info", "warning", "error", "log", "report"})
"""Functions and methods whose text is for people, where nothing is done with what they return."""
_HELP = frozenset({"help", "description", "epilog", "metavar"})
"""Arguments of a parser of the command line whose text is for people."""
_DATA = frozenset({".csv", ".css", ".jinja", ".js"})
"""Files beside code that count; what editors and systems leave there does not."""
_RUNTIME = frozenset({"ClassVar", "InitVar", "KW_ONLY"})
"""Annotations that change what a dataclass does."""
_BY_NAME = frozenset({"importlib", "pkgutil"})
"""A module that imports these may import what its strings name."""
_IGNORED_FIELDS = frozenset({"kind", "type_comment", "type_params", "ctx"})


@dataclass(frozen=True)
class _Module:
    """A module as it counts."""

    digest: str
    imports: frozenset[str]
    """Full names of everything it may import; a name imported from a module may be a module or not."""
    counts: bool


def stage_code(stage: str, sources: Path = SOURCES) -> Code:
    """Return the code of a stage of the pipeline, read from the files of the package in `sources`."""
    return _tree(sources).code(f"{STAGES}.{stage}")


def stage_names(sources: Path = SOURCES) -> list[str]:
    """Return the names of all stages: the modules of `sfd_core.stages` that are programs."""
    return sorted(path.stem for path in (sources / "stages").glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))


def pipeline_code(project: Path) -> str:
    """Return one hash for dvc.yaml and the code of all stages of a project; the points of sweeps are named by it."""
    hashes = {stage: stage_code(stage, project / PACKAGE).hash for stage in stage_names(project / PACKAGE)}
    return _digest(repr(sorted(hashes.items())) + (project / "dvc.yaml").read_text(encoding="utf-8"))[:16]


def require_recorded_code(stage: str, recorded: Path) -> None:
    """Raise `ConfigError` if the file that stage `code` wrote for `stage` is of other code than is about to run."""
    if recorded.is_file():
        differing = Code(**json.loads(recorded.read_text())).differences(stage_code(stage))
        if differing:
            raise ConfigError(
                f"{', '.join(differing[:MOST_NAMED])} changed after {recorded} was written, so the result of stage {stage} "
                "would be recorded as that of other code; run `dvc repro --force code`, then the same command again"
            )


@cache
def _tree(sources: Path) -> "_Tree":
    return _Tree(sources)


class _Tree:
    """The package's modules, each parsed when it is first asked for."""

    def __init__(self, sources: Path) -> None:
        self._sources = sources
        self._modules: dict[str, _Module | None] = {}

    def code(self, root: str) -> Code:
        """Return the code that starts at the module `root`."""
        modules: dict[str, str] = {}
        libraries: set[str] = set()
        left = list(self._with_parents(root))
        while left:
            name = left.pop()
            module = self._module(name)
            if module is None or name in modules or not module.counts:
                continue
            modules[name] = module.digest
            for imported in module.imports:
                if imported.split(".")[0] == PACKAGE:
                    left += self._with_parents(imported)
                else:
                    libraries.add(imported.split(".")[0])
        modules = dict(sorted((modules | self._files(modules)).items()))
        versions = _versions(libraries)
        return Code(_digest(repr((modules, versions))), modules, versions)

    def _with_parents(self, name: str) -> Iterator[str]:
        parts = name.split(".")
        return (".".join(parts[:length]) for length in range(1, len(parts) + 1))

    def _path(self, name: str) -> Path | None:
        base = self._sources.joinpath(*name.split(".")[1:])
        return next((path for path in (base / "__init__.py", base.with_suffix(".py")) if path.is_file()), None)

    def _module(self, name: str) -> _Module | None:
        """Return a module, None if the package has none of that name."""
        if name not in self._modules:
            path = self._path(name)
            parent = name.rpartition(".")[0]
            inherited = self._module(parent) if parent else None
            package = parent if path is None or path.name != "__init__.py" else name
            self._modules[name] = None if path is None else _read(path, package, inherited is None or inherited.counts)
        return self._modules[name]

    def _files(self, modules: Mapping[str, str]) -> dict[str, str]:
        """Return the files that the packages of `modules` carry beside code, with their hashes."""
        found = {}
        for folder in {path.parent for name in modules if (path := self._path(name)) is not None}:
            for path in folder.rglob("*"):
                own = not any((above / "__init__.py").is_file() for above in path.parents if folder in above.parents)
                if own and path.is_file() and path.suffix in _DATA and not path.name.startswith("."):
                    found[path.relative_to(self._sources.parent).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found


def _read(path: Path, package: str, counts: bool) -> _Module:
    tree = _Meaning().visit(_parsed(path.read_text(encoding="utf-8")))
    declared = {
        node.targets[0].id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Constant)
    }
    return _Module(_digest(_written(tree)), frozenset(_imports(tree, package)), bool(declared.get(_DECLARATION, counts)))


def _parsed(text: str) -> ast.Module:
    """Parse code while no garbage is collected.

    Python 3.11 raises `SystemError` if a finalizer, or a thread that runs meanwhile, parses, too (python/cpython#106905).
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(text)
    finally:
        if collects:
            gc.enable()


def _imports(tree: ast.Module, package: str) -> Iterator[str]:
    by_name = False
    strings: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                strings.add(node.value.split(":")[0])
            continue
        by_name |= any(name.split(".")[0] in _BY_NAME for name in names)
        yield from names
    if by_name:
        yield from (text for text in strings if text.split(".")[0] == PACKAGE or text in _distributions())


class _Meaning(ast.NodeTransformer):
    """Leaves of a syntax tree what can change a result."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        """Drop docstrings, of attributes too, and the text of messages."""
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return None
        if isinstance(node.value, ast.Call) and _called(node.value) in _REPORTS:
            _drop_text(node.value)
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        """Keep that a field is declared, which makes a dataclass what it is, but not its type."""
        names = {getattr(part, "id", getattr(part, "attr", "")) for part in ast.walk(node.annotation)}
        if not names & _RUNTIME:
            node.annotation = ast.Constant(None)
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        """Drop the annotation of an argument."""
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """Drop the annotation of what a function returns."""
        node.returns = None
        return self.generic_visit(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        """Drop the annotation of what a coroutine returns."""
        node.returns = None
        return self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.AST]:
        """Drop what only a type checker sees."""
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return [self.visit(other) for other in node.orelse]
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Drop the text of errors, and of the help of a command line."""
        if _ERRORS.search(_called(node)):
            _drop_text(node)
        elif _called(node) in {"ArgumentParser", "add_argument"}:
            node.keywords = [keyword for keyword in node.keywords if keyword.arg not in _HELP]
        return self.generic_visit(node)


def _called(node: ast.Call) -> str:
    """Return the name of a called function or method, without what it belongs to."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _drop_text(node: ast.Call) -> None:
    node.args = [_Textless().visit(argument) for argument in node.args]
    node.keywords = [_Textless().visit(keyword) for keyword in node.keywords]


class _Textless(ast.NodeTransformer):
    """Leaves of the arguments of a message everything but its text."""

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        """Empty a string."""
        return ast.Constant("") if isinstance(node.value, str) else node

    def visit_JoinedStr(self, _: ast.JoinedStr) -> ast.AST:
        """Empty a formatted string: what it shows changes nothing."""
        return ast.Constant("")


def _written(node: Any) -> str:
    """Write a syntax tree down, in the same way for all versions of Python: empty fields, and fields that only newer ones
    have, are left out.
    """
    if isinstance(node, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(node) if name not in _IGNORED_FIELDS)
        inner = ",".join(f"{name}={_written(value)}" for name, value in fields if value is not None and value != [])
        return f"{type(node).__name__}({inner})"
    if isinstance(node, list):
        return f"[{','.join(_written(item) for item in node)}]"
    return repr(node)


def _versions(libraries: set[str]) -> dict[str, str]:
    """Return the versions of the installed distributions that provide these packages; Python's own are left out."""
    names = {name for library in libraries - sys.stdlib_module_names for name in _distributions().get(library, [library])}
    return {name: _version(name) for name in sorted(names)}


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return NOT_INSTALLED


@cache
def _distributions() -> Mapping[str, list[str]]:
    """Return, by package, the distributions that provide it."""
    return importlib.metadata.packages_distributions()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
