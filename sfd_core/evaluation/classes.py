"""Which classes samples are of, told by a linear classifier on features: whether a denoiser drops some."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

COLUMNS = ("class", "real", "samples", "recognised")
REGULARISATION = 100.0


def class_table(features: Tensor, reference: Tensor, labels: NDArray[np.int64], classes: Sequence[str]) -> pd.DataFrame:
    """Return by class the shares of real images and of samples, and the share of its images that the classifier recognises.

    `features` (N, D) are the samples', `reference` (M, 2, D) those of real images, with which the classifier is fitted, and of
    their mirror images, with which it is tried; `labels` (M,) index `classes`. The table is empty where all have one label.
    """
    if len(np.unique(labels)) < 2:
        return pd.DataFrame(columns=COLUMNS)
    classifier = make_pipeline(StandardScaler(), RidgeClassifier(alpha=REGULARISATION))
    classifier.fit(reference[:, 0].numpy(), labels)
    told, tried = (classifier.predict(values.numpy()) for values in (features, reference[:, 1]))
    real = np.bincount(labels, minlength=len(classes))
    recognised = np.bincount(labels[tried == labels], minlength=len(classes))
    drawn = np.bincount(told, minlength=len(classes))
    values = (list(classes), real / len(labels), drawn / len(told), recognised / np.maximum(real, 1))
    return pd.DataFrame(dict(zip(COLUMNS, values, strict=True)))
