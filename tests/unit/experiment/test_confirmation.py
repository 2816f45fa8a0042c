"""The trainings that confirm a study of orders."""

import json
import shlex
from pathlib import Path
from typing import Any

from sfd_core.cli.experiment import parse_assignment, parse_value
from sfd_core.diffusion.schedule import Schedule
from sfd_core.experiment.confirmation import Confirmation
from sfd_core.experiment.grid import base_values, plan_points
from sfd_core.experiment.params import parse_params
from sfd_core.workspace.experiments import Axis, Plan, plan_experiment

ROOT = Path(__file__).parents[3]
VALUES = base_values("avatars", ROOT)
OFFSETS = [
    {"delta_t": offset, "kid_x": 0, "fd_x": distance} for offset, distance in ((0.0, 9), (0.3, "10"), (0.5, 8), (1.0, 70))
]
CORNERS = [{"t_tex": tex, "t_sem": sem, "fd_x": fd} for tex, sem, fd in ((0.5, 0.5, 3), (0.0, 0.75, 1), (1.0, 0.0, 2))]


def planned(command: str) -> Plan:
    """What the command line plans."""
    words = shlex.split(command)
    assigned = dict(parse_assignment(words[index + 1]) for index, word in enumerate(words) if word == "--set")
    key, *values = words[words.index("--vary") + 1 :]
    active = {"active": [words[words.index("--variants") + 1]]}
    return plan_experiment(VALUES, active | assigned, Axis(key, tuple(map(parse_value, values))))


def trained(variant: dict[str, Any]) -> tuple[Any, ...]:
    return variant["times"], variant["delta_t"], variant.get("path")


def test_the_two_best_offsets_are_trained_for_themselves() -> None:
    confirmation = Confirmation.of("any_order", OFFSETS)
    plan = planned(confirmation.command)
    wanted = [({"kind": "global"}, 0.5, None), ({"kind": "global"}, 0.0, None)]
    assert [trained(plan.values["variants"][name]) for name in plan.origins] == wanted
    points = plan_points(VALUES, confirmation.space, "code", ROOT)
    assert [trained(point.values["variants"]["any_order"]) for point in points] == wanted


def test_each_is_sampled_along_the_path_that_it_was_trained_on() -> None:
    values = json.loads(json.dumps(VALUES)) | {"active": ["sync", "sfd", "any_order"], "studies": {}}
    values["report"]["baseline"] = "sync"
    values["evaluate"]["sampler"]["path"] = [[0, 0], [0.1, 0.8], [1, 1]]
    confirmation = Confirmation.of("any_order", OFFSETS)
    for point in plan_points(values, confirmation.space, "code", ROOT):
        params = parse_params(point.values)
        variant = params.variants["any_order"]
        assert Schedule.of(variant, params.evaluate.sampler) == Schedule.of(variant)
    assert "--set evaluate.sampler.path=null" in confirmation.command


def test_the_two_best_corners_are_paths() -> None:
    confirmation = Confirmation.of("any_order", CORNERS)
    plan = planned(confirmation.command)
    assert list(plan.origins) == ["any_order-path-0p0_0p0_0p0_0p75_1p0_1p0", "any_order-path-0p0_0p0_1p0_0p0_1p0_1p0"]
    wanted = [({"kind": "global"}, 0.0, [[0, 0], corner, [1, 1]]) for corner in ([0, 0.75], [1, 0])]
    assert [trained(plan.values["variants"][name]) for name in plan.origins] == wanted
    points = plan_points(VALUES, confirmation.space, "code", ROOT)
    assert [trained(point.values["variants"]["any_order"]) for point in points] == wanted
    assert len({point.name for point in points}) == 2
