"""YAML is read as DVC reads it."""

from pathlib import Path
from typing import Any

import pytest

from sfd_core.experiment.params import load_params
from sfd_core.experiment.presets import load_preset
from sfd_core.experiment.values import dump_yaml, parse_yaml, set_value
from sfd_core.host.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1e-05", 1e-05),
        ("a: 1.5E3", 1500.0),
        ("a: 01200", 1200),
        ("a: no", "no"),
        ("a: 1:30", "1:30"),
        ("\ufeffa: 1", 1),
        ("b: &b {c: 1}\na: {<<: *b, d: 2}", {"c": 1, "d": 2}),
    ],
)
def test_values_are_what_people_mean(text: str, value: Any) -> None:
    found = parse_yaml(text, "params.yaml")["a"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "text", ["1e5", "+1e-3", "0o17", "1.5e3", "0120", "no", "1_0", "~", "1:30", "2026-01-01", "\u00e9", "a: b"]
)
def test_text_is_read_back_as_it_was_written(text: str) -> None:
    assert parse_yaml(dump_yaml({"a": text, text: [text]}), "written") == {"a": text, text: [text]}


@pytest.mark.parametrize("value", [1e-05, 1e22, 0.1, 3.0, 3, True, None, [0.5, [1e-9]]])
def test_values_are_read_back_as_they_were_written(value: Any) -> None:
    found = parse_yaml(dump_yaml({"a": value}), "written")["a"]
    assert (found, type(found)) == (value, type(value))


def test_a_repeated_group_is_set_in_one_place_only() -> None:
    values = parse_yaml("a: &a {repa: {weight: 0.5}}\nb: {<<: *a}\nc: *a", "params.yaml")
    set_value(values, "a.repa.weight", 9.0)
    assert values == {"a": {"repa": {"weight": 9.0}}, "b": {"repa": {"weight": 0.5}}, "c": {"repa": {"weight": 0.5}}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3", 'line 3: found duplicate key "a"'),
        ("a:\n\tb: 1", "line 2: found character '\\\\t'"),
        ("a: !!python/object:os.system x", "line 1: could not determine a constructor"),
        ("a: 1\n---\nb: 2", "line 2: but found another document"),
        ("a: [1", "line 1"),
        ("a: \x00", "unacceptable character"),
    ],
)
def test_what_cannot_be_read_is_named_by_its_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"params.yaml is not valid YAML: .*{said}") as raised:
        parse_yaml(text, "params.yaml")
    assert len(str(raised.value).splitlines()) == 1


def test_other_encodings_and_places_are_refused_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "wide.yaml").write_bytes("base: dit".encode("utf-16"))
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load_preset("wide", tmp_path)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_params(tmp_path)
