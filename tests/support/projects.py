"""A whole project in a temporary folder: the real pipeline on a few small images and networks, with its own git and DVC."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from emoji import emoji_values
from PIL import Image

ROOT = Path(__file__).parents[2]
CLASSES = ("circles", "squares", "stripes")
IMAGES_PER_CLASS = 12
RESOLUTION = 32
TINY: dict[str, Any] = {
    "prepare": {
        "source": "folder",
        "path": "images",
        "held_out_path": None,
        "labels": "folder",
        "resolution": RESOLUTION,
        "copies": 1,
        "held_out": 0.3,
    },
    "texture_vae": {"channels": 4, "width": 8, "depth": 1},
    "features": {"input_size": 64, "grid": 4, "batch_size": 8},
    "semantic_vae": {"channels": 2, "width": 16, "depth": 1, "heads": 2, "pca_channels": 2},
    "encode": {"batch_size": 8},
    "train": {"snapshots": 2},
    "reference": {"extractors": ["efficientnet_lite0"], "batch_size": 8},
    "evaluate": {
        "snapshot_samples": 6,
        "final_samples": 6,
        "kid_subset_size": 4,
        "neighbours": 2,
        "sampler": {"evaluations": 3, "batch_size": 4},
    },
    "studies": {
        "guided": {
            "kind": "guidance",
            "variant": "sfd",
            "guidance": "autoguidance",
            "guide_step": 2,
            "parts": "both",
            "scales": [1.0, 2.0],
        }
    },
    "report": {"grid_images": 3},
}
TINY_OPTIMISATION = {"steps": 4, "batch_size": 8, "warmup_steps": 1, "decay_steps": 0, "checkpoint_every": 1}
PROBE = {"size": "tiny", "patch": 2, "semantic": "vae", "learning_rate": 0.001, "steps": 3, "semantic_weight": 1.0, "seed": 0}
LEAST_COST = PROBE | {"kind": "least_cost", "points": 3, "images": 4, "weighting": "uniform"}


@dataclass(frozen=True)
class Project:
    """A project folder in which commands run as a user's would."""

    path: Path

    @property
    def environment(self) -> dict[str, str]:
        """Nothing of the caller's DVC or MLflow, one thread a process, this environment's programs first."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_", "GIT_", "PYTEST_"))}
        programs = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
        return kept | {"PATH": programs, "OMP_NUM_THREADS": "1", "DVC_NO_ANALYTICS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; on failure, if `check`, fail with all that it printed."""
        ended = subprocess.run(command, cwd=self.path, env=self.environment, capture_output=True, text=True, check=False)
        assert not check or ended.returncode == 0, f"{' '.join(command)}\n{ended.stdout}\n{ended.stderr}"
        return ended

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a command as the leader of a process group of its own."""
        return subprocess.Popen(
            command,
            cwd=self.path,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def kill(self, running: subprocess.Popen[bytes]) -> None:
        """Kill a started command with everything it started."""
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()

    def commit(self, message: str) -> None:
        """Commit what is staged, and every change of a tracked file."""
        identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
        self.run("git", *identity, "commit", "--quiet", "--all", "--message", message)

    def values(self) -> dict[str, Any]:
        loaded: dict[str, Any] = yaml.safe_load((self.path / "params.yaml").read_text())
        return loaded

    def set(self, changes: Mapping[str, Any]) -> None:
        """Write new values, by dotted key, into params.yaml."""
        values = self.values()
        for key, value in changes.items():
            *parents, last = key.split(".")
            group = values
            for parent in parents:
                group = group[parent]
            assert last in group
            group[last] = value
        (self.path / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))


def _merged(values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return values | {
        key: _merged(values.get(key, {}), change) if isinstance(change, Mapping) else change for key, change in changes.items()
    }


def tiny_values(active: list[str], root: Path = ROOT) -> dict[str, Any]:
    """Return preset emoji of the project in `root`, shrunk until the whole pipeline takes a minute."""
    values = _merged(emoji_values(root), TINY)
    for stage in ("texture_vae", "semantic_vae", "train"):
        values[stage]["optimisation"] |= TINY_OPTIMISATION
    return values | {"active": active}


def draw_images(folder: Path) -> None:
    """Draw small pictures of three classes, each a little different."""
    rows, columns = np.mgrid[:RESOLUTION, :RESOLUTION]
    for index, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(IMAGES_PER_CLASS):
            random = np.random.default_rng([index, number])
            row, column = random.uniform(10, 22, 2)
            size = random.uniform(4, 9)
            shapes = {
                "circles": (rows - row) ** 2 + (columns - column) ** 2 < size**2,
                "squares": np.maximum(abs(rows - row), abs(columns - column)) < size,
                "stripes": (rows * row + columns * column) % (size * 20) < size * 10,
            }
            pixels = np.where(shapes[name][..., None], random.integers(0, 200, 3), 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def copy_pipeline(path: Path, root: Path = ROOT) -> Project:
    """Lay out the pipeline in `root`, its code and its presets in a new folder, without git and without outputs."""
    path.mkdir(parents=True)
    for name in ("sfd_core", ".dvc", "presets"):
        shutil.copytree(root / name, path / name, ignore=shutil.ignore_patterns("__pycache__", "cache", "tmp", "config.local"))
    for name in ("dvc.yaml", ".dvcignore", ".gitignore", "requirements.lock"):
        shutil.copy2(root / name, path / name)
    shutil.copytree(root / "docs" / "results", path / "docs" / "results")
    return Project(path)


def make_project(
    path: Path, active: list[str], cache_of: Project | None = None, root: Path = ROOT, values: Mapping[str, Any] = {}
) -> Project:
    """Lay out a project as a clone of `root` with tiny parameters and `values`, committed; `cache_of` lends its DVC cache."""
    project = copy_pipeline(path, root)
    if cache_of is not None:
        shutil.copytree(cache_of.path / ".dvc" / "cache", path / ".dvc" / "cache")
    draw_images(path / "images")
    (path / "params.yaml").write_text(yaml.safe_dump({**tiny_values(active, root), **values}, sort_keys=False))
    project.run("git", "init", "--quiet")
    project.run("git", "add", "--all")
    project.commit("tiny")
    return project
