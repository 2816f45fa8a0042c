"""Nearest training images in feature space: a model that memorises draws its neighbours again."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfd_core.host.errors import DataError

BLOCK = 4096
"""Reference images compared at a time."""


@dataclass(frozen=True)
class Nearest:
    """The k nearest training images of N images, nearest first; every array (N, k)."""

    rows: NDArray[np.int64]
    """Rows of the train shard."""
    mirrored: NDArray[np.bool_]
    """Whether the mirror image is the nearer one."""
    distances: NDArray[np.float32]
    """Euclidean, in feature space."""


def nearest_images(features: Tensor, reference: Tensor, rows: NDArray[np.int64], k: int) -> Nearest:
    """Find the k nearest of the images with features `reference` (M, 2, D): image and mirror image, which count as one.

    `features` (N, D); `rows` (M,) says which row of the train shard each is. Raises `DataError` if k exceeds M.
    """
    if not 1 <= k <= len(reference):
        raise DataError(f"{k} neighbours were asked for among {len(reference)} training images; ask for 1 to {len(reference)}")
    centre = reference[:BLOCK].flatten(0, 1).mean(dim=0)
    centred = features - centre
    best = torch.empty(len(features), 0)
    indices = torch.empty(len(features), 0, dtype=torch.int64)
    flips = torch.empty(len(features), 0, dtype=torch.bool)
    for start in range(0, len(reference), BLOCK):
        block = reference[start : start + BLOCK] - centre
        pair = torch.cdist(centred, block.flatten(0, 1)).reshape(len(centred), len(block), 2)
        distances, orientation = pair.min(dim=2)
        best = torch.cat([best, distances], dim=1)
        indices = torch.cat([indices, torch.arange(start, start + len(block)).expand_as(orientation)], dim=1)
        flips = torch.cat([flips, orientation == 1], dim=1)
        best, order = best.topk(min(k, best.shape[1]), dim=1, largest=False)
        indices, flips = indices.gather(1, order), flips.gather(1, order)
    return Nearest(rows[indices.numpy()], flips.numpy(), best.numpy())


def neighbour_sheet(images: NDArray[np.uint8], train: NDArray[np.uint8], nearest: Nearest, gap: int = 4) -> NDArray[np.uint8]:
    """Return a picture (H, W, 3): a row for each of `images` (N, 3, R, R), first itself, then its neighbours.

    `train` (N, k, 3, R, R) are the rows `nearest.rows`; those found as mirror images are shown so.
    """
    shown = np.where(nearest.mirrored[:, :, None, None, None], train[..., ::-1], train)
    tiles = np.concatenate([images[:, None], shown], axis=1).transpose(0, 1, 3, 4, 2)
    count, columns, height, width, _ = tiles.shape
    sheet = np.full((count * (height + gap) + gap, columns * (width + gap) + 2 * gap, 3), 255, dtype=np.uint8)
    for row, column in np.ndindex(count, columns):
        top, left = gap + row * (height + gap), gap + column * (width + gap) + (gap if column else 0)
        sheet[top : top + height, left : left + width] = tiles[row, column]
    return sheet
