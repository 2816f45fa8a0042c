import xml.etree.ElementTree as ET

import pytest

from sfd_core.diffusion.schedule import Phase
from sfd_core.reporting.palette import variant_styles
from sfd_core.reporting.phases import phase_words, phases_svg


@pytest.mark.parametrize(("delta_t", "bands"), [(0.0, 1), (0.1, 3), (0.3, 3), (1.0, 2)])
def test_diagram_is_well_formed_and_has_a_band_a_phase(delta_t: float, bands: int) -> None:
    root = ET.fromstring(phases_svg(delta_t))
    assert len(root.findall("{*}rect")) == 2 * bands


def test_diagram_shows_the_shares_of_the_schedule() -> None:
    assert phases_svg(0.3).count("11.4%") == 2
    assert "77.1%" in phases_svg(0.3)


def test_words_fit_the_variant() -> None:
    assert phase_words(Phase.BOTH, True, 0.3)["name"] == "asynchronous generation"
    assert phase_words(Phase.BOTH, True, 0.0)["name"] == "synchronous generation"
    assert phase_words(Phase.BOTH, False, 0.0)["name"] == "texture generation"


def test_a_variant_looks_alike_whatever_stands_beside_it() -> None:
    together, alone = variant_styles(["mine", "dit", "sfd", "other"]), variant_styles(["sfd"])
    assert together["sfd"] == alone["sfd"]
    assert len({(style.light, style.marker) for style in together.values()}) == 4
