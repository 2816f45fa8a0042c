import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import Any

import pytest
from denoisers import variant

from sfd_core.diffusion.schedule import Schedule
from sfd_core.experiment.params import Params
from sfd_core.reporting import phases
from sfd_core.reporting.palette import variant_styles
from sfd_core.reporting.sources import Outputs, VariantOutputs


@pytest.mark.parametrize(("delta_t", "bands"), [(0.0, 1), (0.1, 3), (0.3, 3), (1.0, 2), (-0.5, 3)])
def test_diagram_is_well_formed_and_has_a_band_a_phase(delta_t: float, bands: int) -> None:
    root = ET.fromstring(phases.phases_svg(Schedule.offset(delta_t), None))
    assert len(root.findall("{*}rect")) == 2 * bands


def test_diagram_shows_the_shares_where_there_are_any() -> None:
    diagram = phases.phases_svg(Schedule.offset(0.3), [0.114, 0.771, 0.114])
    assert diagram.count("11.4%") == 2
    assert "77.1%" in diagram
    assert "%" not in phases.phases_svg(Schedule.offset(0.3), None)


@pytest.mark.parametrize(
    ("delta_t", "words"),
    [
        (0.3, ["semantics take shape while texture is pure noise", "both move, semantics ahead", "semantics are finished"]),
        (-0.5, ["texture takes shape while semantics are pure noise", "both move, texture ahead", "texture is finished"]),
        (0.0, ["semantics and texture move at the same time"]),
    ],
)
def test_words_fit_the_order(delta_t: float, words: list[str]) -> None:
    assert [band.says[: len(said)] for band, said in zip(phases.bands(Schedule.offset(delta_t)), words, strict=True)] == words


def test_pieces_of_a_path_in_which_the_same_parts_move_are_one_band() -> None:
    path = Schedule.table([[0, 0], [0, 0.5], [0.5, 0.5], [0.7, 0.6], [1, 1]])
    assert [band.name for band in phases.bands(path)] == [
        "semantic initialisation",
        "texture generation",
        "asynchronous generation",
    ]
    assert [band.name for band in phases.bands(Schedule.offset(0), composite=False)] == ["texture generation"]


ANY_ORDER = {"kind": "independent", "absent": 0.1}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "texture and semantics, semantics lead by 0.3"),
        ({"delta_t": 0.0}, "texture and semantics, denoised at the same time"),
        ({"delta_t": -0.5}, "texture and semantics, texture leads by 0.5"),
        (
            {"delta_t": 1.0, "times": {"kind": "own", "semantic_share": 0.4, "handover_noise": 0.25, "absent": 0.1}},
            "texture and semantics, semantics lead by 1, trained one part at a time",
        ),
        ({"times": ANY_ORDER}, "texture and semantics, semantics lead by 0.3, trained in any order"),
    ],
)
def test_a_variant_is_described_by_its_order(changes: dict[str, Any], words: str, params: Params) -> None:
    assert phases.describe(variant(**changes), params.evaluate.sampler) == words


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ({"delta_t": 0.3}, ""),
        ({"delta_t": -0.5}, ", sampled at offset -0.5"),
        ({"path": ((0.0, 0.0), (0.2, 0.9), (1.0, 1.0))}, ", sampled along another path"),
    ],
)
def test_a_variant_that_is_sampled_in_another_order_says_so(order: dict[str, Any], words: str, params: Params) -> None:
    sampler = params.evaluate.sampler.model_copy(update=order)
    assert phases.describe(variant(), sampler) == f"texture and semantics, semantics lead by 0.3{words}"


def shown(outputs: Outputs, *names: str) -> VariantOutputs | None:
    return phases.leading(outputs.variants[name] for name in names or outputs.variants)


def test_the_schedule_shown_is_that_of_a_training_on_it(outputs: Outputs) -> None:
    assert outputs.variants["cascade"].params.delta_t == 1.0
    assert shown(outputs) == outputs.variants["sfd"]
    assert shown(outputs, "cascade") == outputs.variants["cascade"]


def test_the_schedule_shown_is_that_of_a_variant_with_semantics(outputs: Outputs) -> None:
    any_order = shown(outputs, "lightningdit", "any_order")
    assert any_order == outputs.variants["any_order"]
    assert any_order is not None
    assert phases.training_shares(any_order) is None
    assert shown(outputs, "lightningdit", "dit") is None


def test_shares_of_training_samples_are_those_of_the_trained_order(outputs: Outputs) -> None:
    sfd = outputs.variants["sfd"]
    assert phases.training_shares(sfd) == pytest.approx([0.114, 0.771, 0.114], abs=1e-3)
    assert phases.training_shares(replace(sfd, sampler=sfd.sampler.model_copy(update={"delta_t": -0.5}))) is None


def test_a_variant_looks_alike_whatever_stands_beside_it() -> None:
    together, alone = variant_styles(["mine", "dit", "sfd", "other"]), variant_styles(["sfd"])
    assert together["sfd"] == alone["sfd"]
    assert len({(style.light, style.marker) for style in together.values()}) == 4
