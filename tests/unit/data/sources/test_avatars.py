from itertools import pairwise

import numpy as np
import pytest

from sfd_core.data.sources.avatars import FREE, avatar_images, draw, list_styles
from sfd_core.data.sources.image_set import ImageSet
from sfd_core.host.errors import ConfigError

STYLES = ["thumbs", "pixelbot"]
PER_STYLE = 100


@pytest.fixture(scope="module")
def avatars() -> ImageSet:
    return avatar_images(STYLES, PER_STYLE, 32)


def test_the_same_seed_gives_the_same_drawing(avatars: ImageSet) -> None:
    assert avatars.names[:2] == ["thumbs/s0", "thumbs/s1"]
    for index in (0, 1, len(avatars.names) - 1):
        style, seed = avatars.names[index].split("/")
        assert np.array_equal(avatars.render(index, 0), draw((style, int(seed[1:])), 32))
    assert avatars.digest() == avatar_images(STYLES, PER_STYLE, 32).digest()


def test_a_style_is_a_class(avatars: ImageSet) -> None:
    assert avatars.classes == STYLES
    assert [name.split("/")[0] for name in avatars.names] == [STYLES[label] for label in avatars.labels]


def test_equal_pictures_are_kept_once(avatars: ImageSet) -> None:
    pictures = [avatars.render(index, 0).tobytes() for index in range(len(avatars.names))]
    assert len(set(pictures)) == len(pictures)
    numbers = {style: [int(name.split("/s")[1]) for name in avatars.names if name.startswith(style)] for style in STYLES}
    assert numbers["thumbs"] == list(range(PER_STYLE))
    # robots of few parts: number 97 is number 55
    assert 97 not in numbers["pixelbot"]
    assert np.array_equal(draw(("pixelbot", 97), 32), draw(("pixelbot", 55), 32))
    assert all(a < b for a, b in pairwise(numbers["pixelbot"]))


def test_drawings_fill_the_picture_in_colours_on_white(avatars: ImageSet) -> None:
    picture = avatars.render(0, 0)
    assert picture.shape == (32, 32, 3)
    assert picture.dtype == np.uint8
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 10


def test_only_free_styles_are_drawn() -> None:
    licences = list_styles()
    assert set(licences.values()) == set(FREE)
    assert licences["critters"] == "CC0 1.0"
    assert licences["micah"] == "CC BY 4.0"
    assert "avataaars" not in licences


@pytest.mark.parametrize("style", ["avataaars", "none-such", "../thumbs"])
def test_a_style_that_may_not_be_used_is_refused_with_those_that_may(style: str) -> None:
    with pytest.raises(ConfigError, match=r"prepare\.styles names .* choose from .*critters"):
        avatar_images(["thumbs", style], 2, 32)
