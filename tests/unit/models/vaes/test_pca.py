import numpy as np
import pytest
import torch
from sklearn import decomposition

from sfd_core.host.errors import DataError
from sfd_core.models.vaes.pca import PCA


def tokens(n: int = 40, channels: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(channels, channels, generator=generator)
    return 3 + torch.einsum("ck,nkhw->nchw", mixing, torch.randn(n, channels, 4, 4, generator=generator))


def rows(x: torch.Tensor) -> np.ndarray:
    return x.transpose(0, 1).flatten(1).T.numpy()


def test_it_equals_scikit_learn_s_up_to_signs() -> None:
    data = tokens()
    pca, reference = PCA.fit([data], channels=3), decomposition.PCA(n_components=3).fit(rows(data))
    signs = np.sign((pca.components.numpy() * reference.components_).sum(1))
    np.testing.assert_allclose(pca.components.numpy(), signs[:, None] * reference.components_, atol=1e-4)
    np.testing.assert_allclose(rows(pca.encode(data)), signs * reference.transform(rows(data)), atol=1e-3)


def test_blocks_do_not_change_it() -> None:
    data = tokens()
    whole, parts = PCA.fit([data], channels=3), PCA.fit(data.split(7), channels=3)
    torch.testing.assert_close(whole.components, parts.components)
    torch.testing.assert_close(whole.mean, parts.mean)


def test_all_components_give_the_tokens_back() -> None:
    data = tokens()
    pca = PCA.fit([data], channels=6)
    torch.testing.assert_close(pca.decode(pca.encode(data)), data, atol=1e-4, rtol=1e-4)


def test_it_is_saved_with_its_buffers() -> None:
    data = tokens()
    pca = PCA.fit([data], channels=3)
    other = PCA(torch.zeros(6), torch.zeros(3, 6))
    other.load_state_dict(pca.state_dict())
    assert torch.equal(other.encode(data), pca.encode(data))
    assert other.channels == 3


def test_too_many_components_and_no_tokens_are_refused() -> None:
    with pytest.raises(DataError, match="7 principal components"):
        PCA.fit([tokens()], channels=7)
    with pytest.raises(DataError, match="0 tokens"):
        PCA.fit([], channels=1)
