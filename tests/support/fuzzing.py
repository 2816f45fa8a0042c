"""How many examples Hypothesis tries: a few in every run, and ten thousand among the slow tests."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis.strategies import SearchStrategy

EXAMPLES = pytest.mark.parametrize("examples", [150, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])


def try_examples(check: Callable[..., None], examples: int, *values: SearchStrategy[Any]) -> None:
    """Call `check` with so many examples of `values`, and fail with the smallest that fails."""
    settings(max_examples=examples, deadline=None)(given(*values)(check))()
