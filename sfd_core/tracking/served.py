"""The denoiser as an MLflow model, which maps a table of labels and seeds to images.

model = mlflow.pyfunc.load_model("models:/<id>")
images = model.predict(pandas.DataFrame({"label": [0, 1], "seed": [7, 7], "guidance": [1.0, 1.0], "evaluations": [50, 50]}))

`guidance` is the scale of classifier-free guidance for both latents, 1 is none. MLflow requires all four columns.
"""

import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sfd_core.host.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

PIPELINE = "sfd_core.sampling.pipeline:Pipeline"
"""By name, because tracking may not import sampling."""
REQUIRED, OPTIONAL = {"label", "seed"}, {"guidance", "evaluations"}
"""Columns of the table."""
EXAMPLE: Mapping[str, Sequence[int | float]] = {
    "label": [0, 0],
    "seed": [0, 1],
    "guidance": [1.0, 1.0],
    "evaluations": [50, 50],
}
TRAIN_PART, TEXTURE_VAE_PART = "train", "texture_vae"


class SampledModel:
    """Wraps a sampling pipeline for MLflow."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline

    def predict(self, model_input: "pd.DataFrame") -> NDArray[np.uint8]:
        """Return images (N, 3, R, R); each depends only on its row."""
        missing, unknown = REQUIRED - set(model_input.columns), set(model_input.columns) - REQUIRED - OPTIONAL
        if missing:
            raise ConfigError(f"the table lacks the columns {', '.join(sorted(missing))}; give a label and a seed per image")
        if unknown:
            raise ConfigError(
                f"the table has unknown columns {', '.join(sorted(unknown))}; the others are {', '.join(OPTIONAL)}"
            )
        return np.concatenate([self._image(row) for row in model_input.to_dict("records")])

    def _image(self, row: Mapping[Any, Any]) -> NDArray[np.uint8]:
        changes: dict[str, Any] = {"evaluations": row["evaluations"]} if "evaluations" in row else {}
        if row.get("guidance", 1) != 1:
            part = {"scale": float(row["guidance"]), "interval": [0.0, 1.0]}
            changes |= {"guidance": "cfg", "texture": part, "semantic": part}
        images: NDArray[np.uint8] = self.pipeline([row["label"]], seed=row["seed"], **changes).images.cpu().numpy()
        return images


def _load_pyfunc(path: str) -> SampledModel:
    """Load the model that `Store.send_model` logged; called by `mlflow.pyfunc.load_model`."""
    pipeline = pkgutil.resolve_name(PIPELINE)
    return SampledModel(pipeline.from_artifact(Path(path) / TRAIN_PART, Path(path) / TEXTURE_VAE_PART))
