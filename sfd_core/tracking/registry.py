"""The best model of a sweep in MLflow's registry: `mlflow.pyfunc.load_model("models:/semantic-first-diffusion@champion")`.

A version carries what made it: the number it was chosen by, its protocol, the commit that computes it again.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sfd_core.tracking.store import Store
from sfd_core.tracking.sweep import find_training

MODEL = "semantic-first-diffusion"
CHAMPION = "champion"
MEASURE_TAG, VALUE_TAG = "sfd.measure", "sfd.value"


@dataclass(frozen=True)
class Candidate:
    """The best point of a sweep."""

    sweep: str
    variant: str
    run_key: str
    evaluation: str
    """`history_key` of its training and `evaluation_key` of its numbers, which name its run."""
    number: str
    """What it was chosen by, lower is better, such as `fid`."""
    value: float
    measure: str
    """How that was measured: only values with equal words can be compared."""
    commit: str
    """With parameters and lock file: `git checkout`, then `dvc pull` or `dvc repro`."""
    data: Mapping[str, str]
    """Output of the pipeline -> its DVC hash."""


def register_best(store: Store, candidate: Candidate) -> str | None:
    """Register the model of a sweep's best point under the alias of the sweep, and as champion if none is better.

    A champion that was measured in another way is no longer one: the two cannot be compared.
    Returns the address of the version, None if the run or its model is not in this store. Told again, nothing is added.
    """
    runs = find_training(store, candidate.run_key, candidate.evaluation)
    model = store.model_of(runs[-1][0]) if runs else None
    if model is None:
        return None
    run_id, tags = runs[-1]
    lineage = {MEASURE_TAG: candidate.measure, VALUE_TAG: repr(candidate.value), "sfd.commit": candidate.commit}
    lineage |= {f"dvc.{name}": digest for name, digest in candidate.data.items()}
    lineage |= {"sfd.protocol": tags["sfd.protocol"]} if "sfd.protocol" in tags else {}
    version = store.register(MODEL, model, run_id, _words(store, candidate, run_id), lineage)
    store.alias(MODEL, candidate.sweep, version)
    champion = store.version_tags(MODEL, CHAMPION)
    beaten = champion.get(MEASURE_TAG) != candidate.measure or float(champion.get(VALUE_TAG, "inf")) >= candidate.value
    if beaten:
        store.alias(MODEL, CHAMPION, version)
    return f"models:/{MODEL}@{CHAMPION if beaten else candidate.sweep}"


def _words(store: Store, candidate: Candidate, run_id: str) -> str:
    samples = f"#/experiments/{store.experiment_id}/runs/{run_id}/artifacts/images"
    data = "\n".join(f"- `{name}`: `{digest}`" for name, digest in candidate.data.items())
    return (
        f"Variant **{candidate.variant}**, best of sweep **{candidate.sweep}** by {candidate.number} {candidate.value:.6g}.\n\n"
        f"[Samples]({samples}) by training step, protocol and curves are with its [run]"
        f"(#/experiments/{store.experiment_id}/runs/{run_id}).\n\n"
        f"Computed again by `git checkout {candidate.commit}`, then `dvc pull && dvc repro`. DVC hashes:\n\n{data}\n"
    )
