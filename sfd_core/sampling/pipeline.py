"""Seeds to images: noise, guided integration over global time, split, denormalise, decode.

Image i depends only on the seed and i, not on its batch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor
from torchvision.utils import make_grid, save_image

from sfd_core.diffusion import guidance
from sfd_core.diffusion.gaussian import GaussianProcess
from sfd_core.diffusion.gaussian_sampler import DenoiseFn, guide_denoiser, sample_gaussian
from sfd_core.diffusion.guidance import BothFn, VelocityFn
from sfd_core.diffusion.schedule import Schedule, SharedTimes
from sfd_core.diffusion.solver import ObserveFn, Solution, SolverSettings, integrate
from sfd_core.experiment.params import SamplerParams, parse_sampler
from sfd_core.host.errors import ConfigError, IdentityError, NumericsError
from sfd_core.host.paths import atomic_path
from sfd_core.host.progress import with_progress
from sfd_core.host.seeding import generator, sample_noise
from sfd_core.latents.composite import Split
from sfd_core.models.denoisers.blocks import compile_blocks
from sfd_core.models.denoisers.dit import DiT
from sfd_core.models.denoisers.lightningdit import LightningDiT
from sfd_core.models.vaes.image_vae import ImageVAE
from sfd_core.models.vaes.loader import load_texture_vae
from sfd_core.sampling.artifact import Denoiser, load_denoiser
from sfd_core.sampling.guides import require_same_order

DEFAULT_SAMPLER = SamplerParams(
    solver="euler",
    gaussian_solver="ddim",
    evaluations=50,
    shift=1.0,
    guidance="none",
    guide=None,
    guide_step=None,
    delta_t=None,
    path=None,
    texture=guidance.NO_GUIDANCE,
    semantic=guidance.NO_GUIDANCE,
    batch_size=64,
    seed=0,
)
"""Default settings of `Pipeline`."""
MOST_LISTED = 30
"""Classes that an error lists by name."""


@dataclass(frozen=True)
class Samples:
    """Images (N, 3, R, R) uint8 on the CPU, their labels, and the network evaluations per image."""

    images: Tensor
    labels: Tensor
    evaluations: int

    def save_grid(self, path: str | Path, columns: int = 8) -> None:
        """Write all images as one PNG."""
        grid = make_grid(self.images, nrow=columns, padding=2, pad_value=255)
        with atomic_path(Path(path)) as temporary:
            save_image(grid.float() / 255, temporary, format="png")


class Pipeline:
    """A denoiser, the texture VAE of its latents and, for AutoGuidance, a guide.

    Raises `IdentityError` if they do not belong together.
    """

    def __init__(self, denoiser: Denoiser, vae: ImageVAE, guide: Denoiser | None = None, compiled: bool = False) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.denoiser, self.guide = denoiser, guide
        self.vae = vae.to(self.device)
        denoiser.model.to(self.device)
        if guide is not None:
            denoiser.identity.require(guide.identity, "autoguidance")
            if _generates(guide) != _generates(denoiser):
                raise IdentityError(
                    f"a guide with {_generates(guide)} cannot guide a denoiser with {_generates(denoiser)}; "
                    "train the guide with the same recipe"
                )
            guide.model.to(self.device)
        if compiled:
            for network in (denoiser, guide):
                if network is not None:
                    compile_blocks(network.model)

    @classmethod
    def from_artifact(
        cls,
        folder: str | Path,
        texture_vae: str | Path = "outputs/texture_vae",
        step: int | None = None,
        guide: str | Path | None = None,
        compiled: bool = False,
        guide_step: int | None = None,
    ) -> Self:
        """Load the denoiser in `folder` (the snapshot of `step`, by default the last) and its texture VAE.

        `compiled` compiles the blocks of denoiser and guide on first use, once per batch size (torch.compile). Raises
        `DataError` for missing files and `IdentityError` if the VAE did not make the denoiser's latents.
        """
        denoiser = load_denoiser(Path(folder), step)
        vae, identity = load_texture_vae(Path(texture_vae))
        if dict(identity) != dict(denoiser.identity.texture_vae):
            raise IdentityError(
                f"{folder} was trained on latents of texture VAE {denoiser.identity.texture_vae['weights'][:12]}, but "
                f"{texture_vae} holds {identity['weights'][:12]}; give the right VAE or train again with `dvc repro`"
            )
        return cls(denoiser, vae, None if guide is None else load_denoiser(Path(guide), guide_step), compiled)

    def __call__(self, labels: Sequence[int | str], sampler: SamplerParams = DEFAULT_SAMPLER, **changes: Any) -> Samples:
        """Draw one image per label, image i from noise i of the seed; `changes` replace fields of `sampler`.

        For example `pipeline([0, "cat"], seed=3, evaluations=100)`; a label is an index, the null class included, or a name.
        Shows progress of more than one batch. Raises `ConfigError` for unknown labels or settings.
        """
        sampler = parse_sampler(sampler.model_dump() | changes, "these images")
        indices = find_labels(labels, self.denoiser.classes)
        self.require_possible(indices, sampler)
        size = sampler.batch_size
        batches = (self.draw(first, indices[first : first + size], sampler) for first in range(0, len(indices), size))
        chunks = list(with_progress(batches, len(indices), "samples", step=size) if len(indices) > size else batches)
        return Samples(
            torch.cat([chunk.images for chunk in chunks]), torch.tensor(indices), max(chunk.evaluations for chunk in chunks)
        )

    def draw(self, first: int, labels: Sequence[int], sampler: SamplerParams, semantics: Tensor | None = None) -> Samples:
        """Draw images `first`, `first + 1`, ... of the sampler's seed, one per label, as one batch.

        With `semantics` (N, C, g, g), normalised, as an oracle run (`guidance.oracle`). Raises `ConfigError` if the path then
        begins texture before semantics are finished.
        """
        solution = self.latents(first, labels, sampler, semantics)
        images = self.decode(self.denoiser.composite.split(solution.x), first)
        return Samples(images, torch.tensor(list(labels)), solution.evaluations)

    def latents(self, first: int, labels: Sequence[int], sampler: SamplerParams, semantics: Tensor | None = None) -> Solution:
        """Return the normalised latents (N, C, g, g) that `draw` decodes."""
        self.require_possible(labels, sampler)
        if semantics is not None and not (schedule := self._schedule(sampler)).finishes_semantics:
            raise ConfigError(
                f"semantics are given, but the path {schedule.corners} begins texture before semantics are "
                "finished, so texture would not follow them; sample with delta_t 1"
            )
        # dopri5 chooses its steps from the error of the whole batch, but an image must not depend on its batch.
        size = 1 if sampler.solver == "dopri5" and self.denoiser.variant.family == "flow" else len(labels)
        solutions = []
        for start in range(0, len(labels), size):
            rows = slice(start, start + size)
            part = torch.tensor(labels[rows])
            indices = list(range(first + start, first + start + len(part)))
            solutions.append(self.solve(indices, part, sampler, None if semantics is None else semantics[rows]))
        x = torch.cat([solution.x for solution in solutions])
        return Solution(x, max(solution.evaluations for solution in solutions))

    @torch.no_grad()
    def solve(
        self,
        indices: list[int],
        labels: Tensor,
        sampler: SamplerParams,
        semantics: Tensor | None = None,
        observe: ObserveFn | None = None,
    ) -> Solution:
        """Integrate from the noise of images `indices` to normalised latents (N, C, g, g).

        Raises `NumericsError` with the first image whose latent is not finite, and the time at which it first was not.
        """
        solution = self._integrate(indices, labels, sampler, semantics, observe)
        broken = _not_finite(solution.x)
        if broken is None:
            return solution
        row = slice(broken, broken + 1)
        begun: list[float] = []

        def note(u: float, x: Tensor, _: Tensor) -> None:
            if not begun and _not_finite(x) is not None:
                begun.append(u)

        self._integrate(indices[row], labels[row], sampler, None if semantics is None else semantics[row], note)
        raise NumericsError(
            f"the latent of image {indices[broken]} of seed {sampler.seed} is NaN or infinite from time "
            f"{begun[0] if begun else 1:.3g} on; look at the guidance scale and at the weights of the denoiser"
        )

    def _integrate(
        self, indices: list[int], labels: Tensor, sampler: SamplerParams, semantics: Tensor | None, observe: ObserveFn | None
    ) -> Solution:
        latent = self.denoiser.latent
        shape = (latent.channels, latent.grid, latent.grid)
        noise = sample_noise(sampler.seed, indices, shape).to(self.device)
        labels = labels.to(self.device)
        if self.denoiser.variant.family == "gaussian":
            return self._solve_gaussian(noise, labels, indices, sampler, observe)
        velocity = self._velocity(labels, sampler, noise)
        if semantics is not None:
            velocity = guidance.oracle(velocity, noise, semantics.to(self.device), self.denoiser.composite.n_texture)
        settings = SolverSettings(sampler.solver, sampler.evaluations, sampler.shift)
        return integrate(velocity, noise, self._schedule(sampler), self.denoiser.composite.n_texture, settings, observe)

    @torch.no_grad()
    def decode(self, parts: Split, first: int = 0) -> Tensor:
        """Decode normalised latents to uint8 images (N, 3, R, R) on the CPU; the semantic latent is dropped.

        Raises `NumericsError` with the number of the first image that is not finite, counted from `first`.
        """
        images = self.vae.decode(self.denoiser.composite.denormalise_texture(parts.texture))
        broken = _not_finite(images)
        if broken is not None:
            raise NumericsError(
                f"the texture VAE decodes image {first + broken} to NaN or infinity; look at its weights and the guidance scale"
            )
        return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()

    def require_possible(self, labels: Sequence[int], sampler: SamplerParams) -> None:
        """Raise `ConfigError` if this denoiser cannot be sampled so."""
        self._require_labels(labels, sampler)
        if (sampler.guide is not None) != (self.guide is not None):
            raise ConfigError(f"guidance is {sampler.guidance!r}, but {'no' if self.guide is None else 'a'} guide was given")
        variant = self.denoiser.variant
        for name, network in (("this denoiser", self.denoiser), ("its guide", self.guide)):
            if sampler.guidance == "semantic" and network is not None and not getattr(network.variant.times, "absent", 0):
                raise ConfigError(
                    f"guidance is semantic, but {name} was trained with times of kind {network.variant.times.kind} and no "
                    "absent semantics; train it with times.absent above 0"
                )
        if sampler.guidance == "internal" and variant.inner is None:
            raise ConfigError("guidance is internal, but this denoiser has no inner head; train it with inner.block")
        if (sampler.delta_t or sampler.path) and variant.semantic == "none":
            raise ConfigError(
                f"{'path' if sampler.path else 'delta_t'} is {sampler.path or sampler.delta_t}, but this denoiser has no "
                "semantics that could lead; leave it out"
            )
        if variant.family == "flow":
            settings, schedule = SolverSettings(sampler.solver, sampler.evaluations, sampler.shift), self._schedule(sampler)
            schedule.grid(settings.intervals, settings.shift)
            apart = variant.semantic != "none" and any(knot.t_tex != knot.t_sem for knot in schedule.knots)
            for name, network in (("this denoiser", self.denoiser), ("its guide", self.guide)):
                if apart and network is not None and cast(LightningDiT, network.model).embedders == 1:
                    raise ConfigError(
                        f"{name} has one time embedder, so it would take the time of texture for that of semantics; sample "
                        "with delta_t 0"
                    )
            if self.guide is not None:
                require_same_order(self.guide.variant, variant, sampler)
        else:
            GaussianProcess().respaced(sampler.evaluations)

    def _require_labels(self, labels: Sequence[int], sampler: SamplerParams) -> None:
        classes = self.denoiser.classes
        if sampler.guidance == "cfg" and not classes:
            raise ConfigError(
                "guidance is cfg, but this denoiser was trained without labels; choose autoguidance, internal, semantic or none"
            )
        for name, network in (("this denoiser", self.denoiser), ("its guide", self.guide)):
            if network is not None and not network.knows_null_class and (sampler.guidance == "cfg" or len(classes) in labels):
                raise ConfigError(
                    f"{name} was never trained without a label, so it draws no images without one and cfg cannot guide it; "
                    "train it with train.class_dropout above 0, or choose labels and another guidance"
                )
        find_labels(labels, classes)

    def _schedule(self, sampler: SamplerParams) -> Schedule:
        return Schedule.of(self.denoiser.variant, sampler)

    def _velocity(self, labels: Tensor, sampler: SamplerParams, noise: Tensor) -> VelocityFn:
        main = _velocity_of(self.denoiser, labels, sampler)
        if sampler.guidance == "none":
            return main
        n_texture = self.denoiser.composite.n_texture
        if sampler.guidance == "internal":
            heads = _heads_of(self.denoiser, labels, sampler)
            return guidance.internal(main, heads, sampler.texture, sampler.semantic, n_texture)
        if sampler.guidance == "cfg":
            stacked = _velocity_of(self.denoiser, self._with_null(labels), sampler)

            def both(x: Tensor, times: SharedTimes) -> tuple[Tensor, Tensor]:
                return _halves(stacked(torch.cat([x, x]), times.twice()))

            return guidance.cfg(main, both, sampler.texture, sampler.semantic, n_texture)
        weak = _velocity_of(self.guide or self.denoiser, labels, sampler)
        if sampler.guidance == "semantic":
            return guidance.semantic_guidance(main, weak, noise, sampler.texture, n_texture)
        return guidance.autoguidance(main, weak, sampler.texture, sampler.semantic, n_texture)

    def _solve_gaussian(
        self, noise: Tensor, labels: Tensor, indices: list[int], sampler: SamplerParams, observe: ObserveFn | None
    ) -> Solution:
        denoise = main = _denoiser_of(self.denoiser, labels, sampler)
        if sampler.guidance == "cfg":
            stacked = _denoiser_of(self.denoiser, self._with_null(labels), sampler)
            denoise = guide_denoiser(main, lambda x, level: _halves(stacked(torch.cat([x, x]), level)), sampler.texture)
        elif self.guide is not None:
            weak = _denoiser_of(self.guide, labels, sampler)
            denoise = guide_denoiser(main, lambda x, level: (main(x, level), weak(x, level)), sampler.texture)
        sources = [generator(sampler.seed, "step noise", index) for index in indices]

        def step_noise(_: int) -> Tensor:
            return torch.stack([torch.randn(noise.shape[1:], generator=source) for source in sources]).to(noise.device)

        return sample_gaussian(denoise, noise, sampler.gaussian_solver, sampler.evaluations, step_noise, observe)

    def _with_null(self, labels: Tensor) -> Tensor:
        """Append the null class once per label, so that both halves of classifier-free guidance form one batch."""
        return torch.cat([labels, torch.full_like(labels, self.denoiser.null_class)])


def find_labels(wanted: Iterable[int | str], classes: Sequence[str]) -> list[int]:
    """Return indices of classes that are given by name, whatever its case, or by index; the index after the last is no class.

    Raises `ConfigError` that names the unknown ones and the choice, and if none is given.
    """
    by_name = {name.casefold(): index for index, name in enumerate(classes)}
    by_name |= {name: index for index, name in enumerate(classes)}  # two names may differ in case only
    found, unknown = [], []
    for label in wanted:
        named = by_name.get(label, by_name.get(label.casefold())) if isinstance(label, str) else None
        try:
            index = int(label) if named is None else named
        except (TypeError, ValueError):
            index = -1
        found.append(index)
        unknown += [] if 0 <= index <= len(classes) and (isinstance(label, str) or index == label) else [str(label)]
    if unknown or not found:
        listed = ", ".join(f"{index} {name}" for index, name in enumerate(classes))
        choice = listed if len(classes) <= MOST_LISTED else f"0 to {len(classes) - 1}"
        raise ConfigError(
            f"labels {', '.join(unknown[:5]) or 'are missing'}: "
            + (
                f"give {choice}, or {len(classes)} for no class"
                if classes
                else "this denoiser was trained without labels; give 0"
            )
        )
    return found


def _generates(denoiser: Denoiser) -> str:
    """Return in words what a denoiser generates and of what: a guide must know the same latents and labels."""
    variant = denoiser.variant
    latent = f"{denoiser.latent.channels} channels ({variant.family}, semantic {variant.semantic})"
    return f"{latent} and {len(denoiser.classes)} classes"


def _not_finite(values: Tensor) -> int | None:
    """Return the first row that holds NaN or infinity."""
    finite = torch.isfinite(values).flatten(1).all(dim=1)
    return None if bool(finite.all()) else int((~finite).nonzero()[0])


def _halves(stacked: Tensor) -> tuple[Tensor, Tensor]:
    first, second = stacked.chunk(2)
    return first, second


def _velocity_of(denoiser: Denoiser, labels: Tensor, sampler: SamplerParams) -> VelocityFn:
    heads = _heads_of(denoiser, labels, sampler)
    return lambda x, times: heads(x, times)[0]


def _heads_of(denoiser: Denoiser, labels: Tensor, sampler: SamplerParams) -> BothFn:
    """Return the velocity of the network and that of its inner head; without one it is the same."""
    model = cast(LightningDiT, denoiser.model)

    def velocities(x: Tensor, times: SharedTimes) -> tuple[Tensor, Tensor]:
        with _in_precision(sampler, x):
            output = model(x, times.t_tex, times.t_sem, labels)
        prediction = output.prediction.float()
        return prediction, prediction if output.inner is None else output.inner.float()

    return velocities


def _denoiser_of(denoiser: Denoiser, labels: Tensor, sampler: SamplerParams) -> DenoiseFn:
    model = cast(DiT, denoiser.model)

    def denoise(x: Tensor, level: int) -> Tensor:
        with _in_precision(sampler, x):
            output: Tensor = model(x, torch.full((len(x),), float(level), device=x.device), labels)
        return output.float()

    return denoise


def _in_precision(sampler: SamplerParams, x: Tensor) -> torch.autocast:
    """Return the context in which a network runs; states of the solver, times and guidance stay float32."""
    return torch.autocast(x.device.type, torch.bfloat16, enabled=sampler.precision == "bfloat16")
