"""`sfd sample`: images of a trained denoiser, to look at; `sfd import`: a public denoiser to sample from."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter
from cyclopts.validators import mutually_exclusive

from sfd_core.cli.options import ARTIFACT, EVALUATIONS, PARAMS, UNCHANGED, Drawing, artifact_folder, output, whole
from sfd_core.host.errors import ConfigError
from sfd_core.host.paths import stage_dir

ENCODE, TEXTURE_VAE = stage_dir("encode"), stage_dir("texture_vae")
LATENTS = Group("Latents that it was trained on", validator=mutually_exclusive, sort_key=2)
KIND = """sfd: texture and semantics at two clocks (SFD); autoguidance: an SFD that was stopped early, to guide another;
lightningdit: texture alone (LightningDiT)."""
LAST_STEP = 10**9
PAPER_OFFSET = 0.3
STATISTICS = "In place of --encode: latents_stats.pt of the public code, of texture and then of semantics."


def sample(
    artifact: Annotated[str, ARTIFACT],
    /,
    *,
    labels: Annotated[list[str] | None, Parameter(help="Names or indices of classes (default: every class once).")] = None,
    count: Annotated[int, whole("Images of each label.", at_most=100_000)] = 1,
    columns: Annotated[int, whole("Images in a row of the grid.", at_most=10_000)] = 8,
    out: Annotated[Path, output("The PNG file.")] = Path("samples.png"),
    evaluations: Annotated[int | None, EVALUATIONS] = None,
    drawing: Drawing = UNCHANGED,
) -> None:
    """Draw images of a trained denoiser and write them as one PNG."""
    from sfd_core.experiment.params import load_params

    params = load_params(PARAMS)
    sampler = drawing.sampler(params, evaluations)
    from sfd_core.sampling.pipeline import Pipeline, find_labels

    folder = artifact_folder(artifact)
    compiled = params.engine.compile
    pipeline = Pipeline.from_artifact(folder, TEXTURE_VAE, drawing.snapshot, sampler.guide, compiled, sampler.guide_step)
    drawing.require_meaning(pipeline.denoiser.variant, sampler, evaluations)
    classes = list(pipeline.denoiser.classes)
    chosen = find_labels(labels, classes) if labels else list(range(max(1, len(classes))))
    samples = pipeline([label for label in chosen for _ in range(count)], sampler)
    samples.save_grid(out, columns)
    names = ", ".join([*classes, "no class"][label] for label in chosen)
    print(f"{out}: {len(chosen) * count} images of {names}; {samples.evaluations} evaluations each")


def import_(
    kind: Annotated[Literal["sfd", "autoguidance", "lightningdit"], Parameter(help=KIND)],
    file: Annotated[Path, Parameter(help="The public checkpoint, a torch file or safetensors.")],
    /,
    *,
    out: Annotated[Path, output("Folder of the artifact, such as weights/sfd-xl.", folder=True)],
    encode: Annotated[Path, Parameter(help="Output of encode with texture_energy_power 0.", group=LATENTS)] = ENCODE,
    statistics: Annotated[list[Path] | None, Parameter(help=STATISTICS, group=LATENTS)] = None,
    texture_vae: Annotated[
        Path | None, Parameter(help=f"With --statistics: the VAE that decodes (default: {TEXTURE_VAE}).")
    ] = None,
    num_classes: Annotated[int | None, whole("Name the classes 0 to N - 1 (default: as encoded).")] = None,
    delta_t: Annotated[
        float | None, Parameter(help=f"How far semantics led in its training (default: {PAPER_OFFSET}).")
    ] = None,
    step: Annotated[int | None, whole("Training steps (default: the number that names the file).", 0, LAST_STEP)] = None,
    batch_size: Annotated[int, whole("Images a step, in the paper 256.")] = 256,
) -> None:
    """Make an artifact of a public denoiser.

    `sfd sample` and `sfd evaluate` use it as if it was trained here.
    """
    from sfd_core.sampling.importing import ImportOptions, LatentSource, import_denoiser

    if kind == "lightningdit" and delta_t is not None:
        raise ConfigError(f"--delta-t {delta_t} changes nothing: a {kind} has no semantics to lead; leave it out")
    if texture_vae and not statistics:
        raise ConfigError(
            "--texture-vae changes nothing without --statistics: the encoded latents name their own; leave it out"
        )
    delta_t = PAPER_OFFSET if delta_t is None else delta_t
    if not 0 <= delta_t <= 1:
        raise ConfigError(f"--delta-t {delta_t} is no share of global time; give a number from 0 to 1")
    options = ImportOptions(kind, delta_t, step_of(file) if step is None else step, batch_size, num_classes)
    decoder = texture_vae or TEXTURE_VAE
    source = LatentSource.of_statistics(statistics, decoder) if statistics else LatentSource.of_encode(encode)
    manifest = import_denoiser(file, options, source, out)
    print(
        f"{out}: {manifest.variant_name}, {manifest.parameters / 1e6:.1f}M parameters, step {options.step}, "
        f"{len(manifest.classes)} classes, {manifest.latent.channels} channels, grid {manifest.latent.grid}"
    )


def ema(
    artifact: Annotated[str, ARTIFACT],
    /,
    *,
    sigma: Annotated[float, Parameter(help="Relative width of the average, such as 0.1: a tenth of the training.")],
    step: Annotated[int | None, whole("Steps after which it is taken (default: the last snapshot's).")] = None,
    out: Annotated[Path, output("Folder of the artifact with the averaged weights.", folder=True)],
) -> None:
    """Make an artifact whose weights are averaged over another stretch of the training.

    The training must have stored averages (`train.power_emas`). Every command takes the folder in place of a variant.
    """
    from sfd_core.sampling.artifact import DenoiserManifest, write_averaged
    from sfd_core.training.power_ema import AVERAGES, StoredAverage, reconstruct

    folder = artifact_folder(artifact)
    manifest = DenoiserManifest.read(folder)
    chosen = manifest.snapshots[-1].step if step is None else step
    weights, mismatch = reconstruct(StoredAverage.all_in(folder / "snapshots" / AVERAGES), sigma, chosen)
    write_averaged(manifest, folder, weights, chosen, out)
    print(f"{out}: average of width {sigma:g} after {chosen} steps; its weights over the steps are matched to {mismatch:.1e}")


def step_of(file: Path) -> int:
    """Return the training step that names a public checkpoint, such as `4000000.pt`. Raises `ConfigError` if none does."""
    if not file.stem.isdecimal() or int(file.stem) > LAST_STEP:
        raise ConfigError(f"the name of {file} does not say after how many steps it was saved; give --step")
    return int(file.stem)
