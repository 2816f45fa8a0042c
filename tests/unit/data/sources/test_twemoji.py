import re
from collections import Counter

import numpy as np
import pytest

from sfd_core.data.sources.twemoji import SKIN_TONES, SMALLEST_SCALE, Placement, _svg_folder, list_emoji, placement, render
from sfd_core.host.errors import DataError

WHOLE = Placement(1.0, 0.0, 0.0)


def centre(ink: np.ndarray) -> np.ndarray:
    return np.array([(ink * axis).sum() for axis in np.mgrid[0:64, 0:64] + 0.5]) / ink.sum()


def test_the_set_is_the_1898_base_emoji_in_9_categories_and_99_subcategories() -> None:
    emoji = list_emoji()
    assert len(emoji) == len({one.name for one in emoji}) == 1898
    assert len({one.category for one in emoji}) == 9
    assert len({one.subcategory for one in emoji}) == 99
    assert Counter(one.category for one in emoji)["Flags"] == 269
    assert not any(SKIN_TONES & set(one.name.split("-")) for one in emoji)


def test_a_subcategory_belongs_to_one_category() -> None:
    pairs = {(one.category, one.subcategory) for one in list_emoji()}
    assert len(pairs) == len({subcategory for _, subcategory in pairs})


@pytest.mark.parametrize(
    ("name", "category"), [("1f600", "Smileys & Emotion"), ("1f1e9-1f1ea", "Flags"), ("1f431", "Animals & Nature")]
)
def test_known_emoji_have_their_category(name: str, category: str) -> None:
    assert {one.name: one.category for one in list_emoji()}[name] == category


def test_the_german_flag_is_black_red_and_gold() -> None:
    pixels = render("1f1e9-1f1ea", 64, WHOLE)
    assert pixels.shape == (64, 64, 3)
    assert pixels.dtype == np.uint8
    assert (pixels[0, 0] == 255).all()
    black, red, gold = pixels[20, 32].astype(int), pixels[32, 32].astype(int), pixels[45, 32].astype(int)
    assert black.max() < 60
    assert red[0] > 180
    assert red[1:].max() < 60
    assert gold[:2].min() > 160
    assert gold[2] < 100


def test_edges_are_smooth() -> None:
    levels = np.unique(render("2b1b", 64, Placement(0.71, 0.13, 0.17))[..., 0])
    assert len(levels) > 4


@pytest.mark.parametrize("name", ["1f600", "1f431", "1f1e9-1f1ea"])
@pytest.mark.parametrize("copy", [1, 2, 3])
def test_a_copy_is_the_whole_drawing_shifted_and_scaled(name: str, copy: int) -> None:
    place = placement(name, copy, seed=0)
    whole, moved = render(name, 64, WHOLE).astype(float), render(name, 64, place).astype(float)
    # Ink, the darkness of all pixels, shrinks with the area; its centre moves with the drawing.
    ink_whole, ink_moved = 255 - whole.mean(axis=-1), 255 - moved.mean(axis=-1)
    assert ink_moved.sum() == pytest.approx(ink_whole.sum() * place.scale**2, rel=0.01)
    expected = centre(ink_whole) * place.scale + 64 * np.array([place.top, place.left])
    np.testing.assert_allclose(centre(ink_moved), expected, atol=0.05)


def test_placement_depends_on_name_copy_and_seed_and_never_cuts() -> None:
    assert placement("1f600", 0, 7) == WHOLE
    places = [placement(name, copy, seed) for name in ("1f600", "1f431") for copy in (1, 2) for seed in (0, 1)]
    assert len(set(places)) == len(places)
    assert places == [placement(name, copy, seed) for name in ("1f600", "1f431") for copy in (1, 2) for seed in (0, 1)]
    for place in places:
        assert SMALLEST_SCALE <= place.scale <= 1
        assert 0 <= place.left <= 1 - place.scale
        assert 0 <= place.top <= 1 - place.scale


def test_the_one_drawing_that_is_not_square_is_centred() -> None:
    text = {file.name: file.read_text(encoding="utf-8") for file in _svg_folder().iterdir()}
    wide = [name for name, drawing in text.items() if not re.search(r'viewBox="0 0 36 36"', drawing)]
    assert len(wide) == 1
    pixels = render(wide[0].removesuffix(".svg"), 64, WHOLE)
    rows = np.flatnonzero((pixels < 250).any(axis=(1, 2)))
    assert abs((rows[0] + rows[-1]) / 2 - 31.5) <= 1


def test_an_unknown_drawing_is_named() -> None:
    with pytest.raises(DataError, match=r"drawing nothing\.svg cannot be rendered"):
        render("nothing", 64, WHOLE)
