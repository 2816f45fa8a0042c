"""`sfd import`: a public denoiser as an artifact that can be sampled from and judged."""

import argparse
from pathlib import Path
from typing import Any, get_args

from sfd_core.host.errors import ConfigError
from sfd_core.host.paths import stage_dir

KINDS = {
    "sfd": "texture and semantics at two clocks (SFD)",
    "autoguidance": "an SFD that was stopped early, to guide another",
    "lightningdit": "texture alone (LightningDiT)",
}
PAPER_OFFSET, PAPER_BATCH = 0.3, 256


def add_import(commands: Any) -> None:
    """Add the command to the subparsers `commands`."""
    command = commands.add_parser("import", help="make an artifact of a public denoiser", description=_import.__doc__)
    command.add_argument("kind", choices=KINDS, help="; ".join(f"{kind}: {meaning}" for kind, meaning in KINDS.items()))
    command.add_argument("file", type=Path, metavar="FILE", help="the public checkpoint, a torch file or safetensors")
    command.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="such as weights/sfd-xl")
    latents = command.add_argument_group("latents that it was trained on").add_mutually_exclusive_group()
    latents.add_argument(
        "--encode", type=Path, default=stage_dir("encode"), metavar="FOLDER", help="output of encode (default: %(default)s)"
    )
    latents.add_argument(
        "--statistics",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="in place of --encode: latents_stats.pt of the public code, of texture and then of semantics",
    )
    command.add_argument(
        "--texture-vae",
        type=Path,
        default=stage_dir("texture_vae"),
        metavar="FOLDER",
        help="with --statistics: output of texture_vae that decodes the samples (default: %(default)s)",
    )
    command.add_argument("--num-classes", type=int, metavar="N", help="name the classes 0 to N - 1 (default: as encoded)")
    command.add_argument(
        "--delta-t",
        type=float,
        default=PAPER_OFFSET,
        metavar="OFFSET",
        help="by how much semantics led in its training (default: %(default)s, the paper's)",
    )
    command.add_argument("--step", type=int, metavar="N", help="training steps (default: the number that names the file)")
    command.add_argument(
        "--batch-size", type=int, default=PAPER_BATCH, metavar="N", help="images a step (default: %(default)s, the paper's)"
    )
    command.set_defaults(handler=_import)


def _import(arguments: argparse.Namespace) -> None:
    """Make an artifact of a public denoiser, which `sfd sample` and `sfd evaluate` use as if it was trained here."""
    from sfd_core.sampling.importing import ImportOptions, Kind, LatentSource, import_denoiser

    options = ImportOptions(
        kind=next(kind for kind in get_args(Kind) if kind == arguments.kind),
        delta_t=_offset(arguments.delta_t),
        step=arguments.step if arguments.step is not None else step_of(arguments.file),
        batch_size=arguments.batch_size,
        num_classes=arguments.num_classes,
    )
    if arguments.statistics:
        source = LatentSource.of_statistics(arguments.statistics, arguments.texture_vae)
    else:
        source = LatentSource.of_encode(arguments.encode)
    manifest = import_denoiser(arguments.file, options, source, arguments.out)
    print(
        f"{arguments.out}: {manifest.variant_name}, {manifest.parameters / 1e6:.1f}M parameters, step {options.step}, "
        f"{len(manifest.classes)} classes, {manifest.latent.channels} channels, grid {manifest.latent.grid}"
    )


def step_of(file: Path) -> int:
    """Return the training step that names a public checkpoint, such as `4000000.pt`. Raises `ConfigError` if none does."""
    if not file.stem.isdecimal():
        raise ConfigError(f"the name of {file} does not say after how many steps it was saved; give --step")
    return int(file.stem)


def _offset(delta_t: float) -> float:
    if not 0 <= delta_t <= 1:
        raise ConfigError(f"--delta-t {delta_t} is no share of global time; give a number from 0 to 1")
    return delta_t
