"""The table of environment variables in docs/settings.md is that of the classes that read them."""

import re
from pathlib import Path

import pytest

from infra.lab import settings as lab
from infra.lab.credentials import VARIABLES
from sfd_core.host.settings import EnvironmentSettings, Settings

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "settings.md").read_text()
SOURCES = [path for room in ("sfd_core", "flows", "infra") for path in sorted((ROOT / room).rglob("*")) if path.is_file()]


def row(settings: type[EnvironmentSettings], name: str) -> str:
    field = settings.model_fields[name]
    default = "" if field.default_factory or field.default in (None, "") else str(field.default)
    return f"| `{settings.variable(name)}` | {field.title} | {default} | {field.description} |"


@pytest.mark.parametrize(
    ("settings", "name"), [(settings, name) for settings in (Settings, lab.Settings) for name in settings.model_fields]
)
def test_every_setting_stands_in_the_table(settings: type[EnvironmentSettings], name: str) -> None:
    assert row(settings, name) in DOCUMENT.splitlines()


def test_the_table_names_every_variable_that_is_read_and_no_other() -> None:
    named = set(re.findall(r"\bSFD_[A-Z0-9_]*[A-Z0-9]\b", DOCUMENT))
    fields = {settings.variable(name) for settings in (Settings, lab.Settings) for name in settings.model_fields}
    secrets = {name for name in VARIABLES.values() if name.startswith("SFD_")}
    assert named == fields | secrets | {"SFD_POSTGRES_PASSWORD"}


def test_only_the_settings_read_variables_of_this_project() -> None:
    reading = re.compile(r"(environ(\.get|\.setdefault|\.pop)?[\[(]|getenv\()[^)\]]*SFD_")
    assert reading.search('os.environ.get("SFD_RESUME")')
    assert reading.search('getenv("SFD_RESUME")')
    for path in SOURCES:
        if path.suffix == ".py":
            assert not reading.search(path.read_text()), path
