"""No parameter file ends in a traceback: it is an experiment, or `ConfigError` says why it is none."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from emoji import emoji_values
from fuzzing import EXAMPLES, try_examples
from hypothesis import strategies as st

from sfd_core.experiment.params import load_params, parse_params
from sfd_core.experiment.values import parse_yaml
from sfd_core.host.errors import ConfigError

VALUES = emoji_values()


def places(values: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value, groups included."""
    for key, value in values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ():
        yield (*above, key)
        yield from places(value, (*above, key))


PLACES = list(places(VALUES))
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.just(10**400),
    st.sampled_from(["nan", "-0", "1e999"]),
)
ANYTHING = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6
)


def changed(place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    values = copy.deepcopy(VALUES)
    group = values
    for key in place[:-1]:
        group = group[key]
    group[place[-1]] = value
    return values


def told(call: Callable[[], object]) -> str:
    """Return what `ConfigError` says; nothing without one."""
    try:
        call()
    except ConfigError as error:
        return str(error)
    return ""


@EXAMPLES
def test_any_value_at_any_place_is_an_experiment_or_an_error(examples: int) -> None:
    def check(place: tuple[Any, ...], value: Any) -> None:
        message = told(lambda: parse_params(changed(place, value)))
        assert not message or message.startswith("params is not a valid experiment:")

    try_examples(check, examples, st.sampled_from(PLACES), ANYTHING)


@EXAMPLES
def test_any_bytes_are_an_experiment_or_an_error(tmp_path: Path, examples: int) -> None:
    text, path = yaml.safe_dump(VALUES).encode(), tmp_path / "params.yaml"

    def check(place: int, left_out: int, inserted: bytes) -> None:
        path.write_bytes(text[:place] + inserted + text[place + left_out :])
        message = told(lambda: load_params(path))
        assert not message or str(path) in message

    for place, inserted in ((0, b"\0"), (40, b"\t"), (10, b"&a [*a]"), (0, b"\xff\xfe"), (10, b"\xe2\x80")):
        check(place, 0, inserted)
    inserted = st.binary(max_size=8) | st.text(max_size=8).map(lambda words: words.encode(errors="surrogatepass"))
    try_examples(check, examples, st.integers(0, len(text)), st.integers(0, 3), inserted)


ODD = {
    "deep list": "[" * 3000,
    "deep sequence": "- " * 3000,
    "mappings in a line": "a: " * 300,
    "a list in itself": "&a [" + "*a, " * 10 + "]",
    "keys alone": "? ? ? x",
    "another version": "%YAML 9.9\n---\na: 1",
    "half a number": "a: 0x",
    "a number of 5,000 digits": "a: 0x" + "f" * 5000,
}


@pytest.mark.parametrize("name", ODD)
def test_odd_texts_are_values_or_an_error(name: str) -> None:
    message = told(lambda: parse_yaml(ODD[name], "params.yaml"))
    assert not message or "params.yaml is not valid YAML" in message


def test_values_that_anchors_multiply_are_refused_at_once() -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 12)]
    message = told(lambda: parse_params(parse_yaml("\n".join(rows), "params.yaml")))
    assert "a11: unknown key" in message
    values = yaml.safe_load("\n".join(rows))
    message = told(lambda: parse_params(changed(("studies",), values["a11"])))
    assert "studies: Input should be a valid dictionary (given: [[[" in message
    assert len(message) < 100_000
