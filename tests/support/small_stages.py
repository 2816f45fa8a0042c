"""The stages between images and training, on a few random images and small networks: each one's real code, in a second."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from prepared_images import FEATURES, prepare_images
from torch import nn

from sfd_core.experiment.params import EncodeParams, FeaturesParams, Optimisation, SemanticVAEParams, TrainParams
from sfd_core.latents.tokens import TokenSource, open_tokens
from sfd_core.models.vaes.texture_vae import TextureVAE, TextureVAEShape
from sfd_core.stages.encode import EncodeInputs, encode
from sfd_core.stages.features import extract_features
from sfd_core.stages.semantic_vae import make_semantic_vae
from sfd_core.stages.train import TrainFolders

ROWS = {"train": 12, "held_out": 8}
OPTIMISATION = Optimisation(
    steps=3, batch_size=4, warmup_steps=1, decay_steps=0, final_rate=1.0, betas=[0.9, 0.95], weight_decay=0.0, clip_norm=1.0,
    precision="float32", checkpoint_every=1, seed=0,
)  # fmt: skip
TRAIN = TrainParams(optimisation=OPTIMISATION, snapshots=1, ema_decay=0.9, ema_warmup=True, class_dropout=0.1, flips=True)
ENCODE = EncodeParams(posterior="sample", dtype="float32", batch_size=5, seed=0)
SEMANTIC_VAE = SemanticVAEParams(
    weights=None, standardise=True, channels=2, width=16, depth=1, heads=2, kl_weight=1e-7, pca_channels=3,
    learning_rate=1e-3, optimisation=OPTIMISATION,
)  # fmt: skip


@dataclass(frozen=True)
class Stages:
    """Folders of stages, with the tokens stored and not."""

    path: Path
    features_params: FeaturesParams

    @property
    def prepare(self) -> Path:
        return self.path / "prepare"

    def features(self, store: bool) -> Path:
        return self.path / f"features-{store}"

    def tokens(self, store: bool, part: str = "train") -> TokenSource:
        return open_tokens(self.features(store) / part, self.prepare / part, torch.device("cpu"))

    def compress(self, store: bool = True) -> None:
        """Make both VAEs: the Semantic VAE trained for a moment, the texture VAE random and unsure of its latents."""
        make_semantic_vae(SEMANTIC_VAE, self.prepare, self.features(store), self._run(store) / "semantic_vae")
        torch.manual_seed(0)
        (self._run(store) / "texture_vae").mkdir()
        vae = TextureVAE(TextureVAEShape(channels=4, downsampling=8, width=8, depth=1))
        for parameter in vae.parameters():
            nn.init.normal_(parameter, std=0.1)
        vae.save(self._run(store) / "texture_vae")

    def encode(self, params: EncodeParams = ENCODE, store: bool = True) -> TrainFolders:
        """Encode into a folder named after what differs from `ENCODE`, and return what a training reads."""
        run, changed = self._run(store), [str(value) for name, value in params if value != getattr(ENCODE, name)]
        folders = TrainFolders(run / "-".join(["encode", *changed]), self.features(store), self.prepare, run / "semantic_vae")
        if not folders.encode.exists():
            inputs = EncodeInputs(folders.prepare, folders.features, run / "texture_vae", folders.semantic_vae)
            encode(params, inputs, folders.encode)
        return folders

    def _run(self, store: bool) -> Path:
        return self.path / f"run-{store}"


def lay_out(path: Path, stores: tuple[bool, ...]) -> Stages:
    """Write random images and their tokens under `path`, stored and not as `stores` says."""
    prepare_images(path, ROWS)
    values = FEATURES | {"weights": str(path / "weights.pth"), "batch_size": 5, "store": True}
    found = Stages(path, FeaturesParams.model_validate(values))
    for store in stores:
        extract_features(found.features_params.model_copy(update={"store": store}), found.prepare, found.features(store))
    return found


def lay_out_compressed(path: Path) -> Stages:
    """Write random images, their stored tokens and both VAEs under `path`; interrupted runs are kept there, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        found = lay_out(path, stores=(True,))
        found.compress()
    return found
