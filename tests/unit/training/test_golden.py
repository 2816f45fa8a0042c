"""A tiny training of each variant follows the curve that is kept as text: nothing changes what is learned unnoticed."""

import importlib.util
from pathlib import Path

import pytest

program = Path(__file__).with_name("golden_curves.py")
spec = importlib.util.spec_from_file_location("golden_curves", program)
assert spec is not None
assert spec.loader is not None
golden = importlib.util.module_from_spec(spec)
spec.loader.exec_module(golden)


@pytest.mark.parametrize("name", golden.PARAMS.variants)
def test_a_variant_learns_as_it_always_did(tmp_path: Path, name: str) -> None:
    expected = [float(line) for line in (golden.FOLDER / f"{name}.txt").read_text().split()]
    assert golden.losses(golden.PARAMS.variants[name], tmp_path) == pytest.approx(expected, rel=1e-3)
    assert len(expected) == golden.STEPS
    assert expected[-1] != expected[0]
