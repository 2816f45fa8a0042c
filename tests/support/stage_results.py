"""What a stage writes besides times, to be compared byte by byte."""

from pathlib import Path

import yaml

WITH_TIMES = {"texture_vae", "semantic_vae", "train"}
"""Stages whose metrics and plots hold times; only the report reads these."""


def results(stage: str) -> list[str]:
    """Outputs of a stage that are functions of parameters, inputs and code."""
    name, _, variant = stage.partition("@")
    entry = yaml.safe_load((Path(__file__).parents[2] / "dvc.yaml").read_text())["stages"][name]
    kinds = ["outs"] if name in WITH_TIMES else ["outs", "metrics", "plots"]
    outs = [out if isinstance(out, str) else next(iter(out)) for kind in kinds for out in entry.get(kind, [])]
    return [out.replace("${item.variant}", variant) for out in outs]
