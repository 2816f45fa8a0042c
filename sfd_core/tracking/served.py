"""The denoiser as an MLflow model: a table of labels and seeds in, images out.

model = mlflow.pyfunc.load_model("models:/<id>")
images = model.predict(pandas.DataFrame({"label": [0, 1], "seed": [7, 7]}))
"""

import pkgutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sfd_core.errors import ConfigError

PIPELINE = "sfd_core.sampling:Pipeline"
"""Named, not imported: tracking and sampling stand beside one another."""
TRAIN_PART, TEXTURE_VAE_PART = "train", "texture_vae"


class SampledModel:
    """Wraps a sampling pipeline as MLflow wants it."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline

    def predict(self, model_input: pd.DataFrame) -> NDArray[np.uint8]:
        """Return images (N, 3, R, R); each depends on the label and the seed of its row only."""
        missing = {"label", "seed"} - set(model_input.columns)
        if missing:
            raise ConfigError(
                f"the table lacks the columns {', '.join(sorted(missing))}; give a label and a seed for each image"
            )
        images = [
            self.pipeline([int(label)], seed=int(seed)).images.cpu().numpy()
            for label, seed in zip(model_input["label"], model_input["seed"], strict=True)
        ]
        return np.concatenate(images)


def _load_pyfunc(path: str) -> SampledModel:
    """Load what `Store.send_model` staged; called by `mlflow.pyfunc.load_model`."""
    pipeline = pkgutil.resolve_name(PIPELINE)
    return SampledModel(pipeline.from_artifact(Path(path) / TRAIN_PART, Path(path) / TEXTURE_VAE_PART))
