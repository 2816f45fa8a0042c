import pytest
import torch

from sfd_core.host.errors import ConfigError
from sfd_core.models.denoisers import layers


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_patch_embedding_is_its_convolution(patch: int) -> None:
    embedding = layers.PatchEmbedding(in_channels=3, width=8, patch=patch)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(embedding(x), embedding.proj(x).flatten(2).transpose(1, 2))


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_unpatchify_puts_every_token_back_where_its_patch_lies(patch: int) -> None:
    x = torch.randn(2, 3, 8, 8)
    tokens = layers.patchify(x, patch).unflatten(-1, (3, patch**2)).transpose(-1, -2).flatten(-2)
    torch.testing.assert_close(layers.unpatchify(tokens, patch, grid=8), x, rtol=0, atol=0)


def test_sincos_positions_tell_the_column_first_then_the_row() -> None:
    positions = layers.sincos_positions(width=16, grid=4).view(4, 4, 16)
    assert (positions[0] == positions[3])[:, :8].all()
    assert (positions[:, 0] == positions[:, 3])[:, 8:].all()
    # lowest frequency pair: sin and cos of the plain index
    torch.testing.assert_close(positions[2, 3, 0], torch.tensor(3.0).sin())
    torch.testing.assert_close(positions[2, 3, 4], torch.tensor(3.0).cos())
    torch.testing.assert_close(positions[2, 3, 8], torch.tensor(2.0).sin())
    assert len(positions.view(16, 16).unique(dim=0)) == 16


def test_attention_scores_depend_on_relative_positions_only() -> None:
    rope = layers.RotaryEmbedding(head_width=16, grid=4)
    turns = torch.view_as_complex(rope.rotation()[:, 0, 0]).view(4, 4, 8)
    shifted = turns[1:, 2:] * turns[:-1, :-2].conj()
    torch.testing.assert_close(shifted, shifted[:1, :1].expand_as(shifted))


def test_rotary_tables_have_equal_neighbours_and_turn_rows_then_columns() -> None:
    rope = layers.RotaryEmbedding(head_width=8, grid=3)
    assert rope.freqs_cos.shape == (9, 8)
    torch.testing.assert_close(rope.freqs_cos[:, ::2], rope.freqs_cos[:, 1::2])
    cos = rope.freqs_cos.view(3, 3, 8)
    torch.testing.assert_close(cos[2, 1, 0], torch.tensor(2.0).cos())
    torch.testing.assert_close(cos[2, 1, 4], torch.tensor(1.0).cos())
    torch.testing.assert_close(cos[2, 1, 2], torch.tensor(2.0 / 100).cos())


def test_timestep_embedding_starts_with_cosines_of_falling_frequency() -> None:
    embedding = layers.TimestepEmbedding(width=4)
    assert embedding.frequencies[0] == 1
    assert embedding.frequencies.diff().max() < 0
    assert "frequencies" not in embedding.state_dict()


@pytest.mark.parametrize("width", [6, 10])
def test_widths_that_cannot_hold_positions_are_refused(width: int) -> None:
    with pytest.raises(ConfigError, match="multiple of 4"):
        layers.sincos_positions(width, grid=2)
    with pytest.raises(ConfigError, match="multiple of 4"):
        layers.RotaryEmbedding(width, grid=2)


def test_swiglu_opens_the_second_half_by_the_silu_of_the_first() -> None:
    mlp = layers.SwiGLU(width=12)
    assert mlp.w12.out_features == 2 * int(2 / 3 * 4 * 12)
    x = torch.randn(2, 3, 12)
    gate, value = mlp.w12(x).chunk(2, dim=-1)
    torch.testing.assert_close(mlp(x), mlp.w3(gate * gate.sigmoid() * value))
