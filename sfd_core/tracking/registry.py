"""Registers the best model of a sweep: `mlflow.pyfunc.load_model("models:/semantic-first-diffusion@champion")`.

A version stores its number, the protocol of that number, and the commit that reproduces it.
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
    """`history_key` of its training and `evaluation_key` of its numbers, which identify its run."""
    number: str
    """Name of the number that selects it, such as `fid`; lower is better."""
    value: float
    measure: str
    """How it was measured; only values with equal text are comparable."""
    commit: str
    """Commit with parameters and lock file, for `git checkout` and then `dvc pull` or `dvc repro`."""
    data: Mapping[str, str]
    """Output of the pipeline -> its DVC hash."""


def register_best(store: Store, candidate: Candidate) -> str | None:
    """Register the model of a sweep's best point with the sweep's alias, and as champion unless the champion is better.

    A champion that was measured differently is replaced, because the two are not comparable. Returns the address of the
    version, or None if the run or its model is not in this store. Calling it again adds nothing.
    """
    runs = find_training(store, candidate.run_key, candidate.evaluation)
    model = store.model_of(runs[-1][0]) if runs else None
    if model is None:
        return None
    run_id, tags = runs[-1]
    lineage = {MEASURE_TAG: candidate.measure, VALUE_TAG: repr(candidate.value), "sfd.commit": candidate.commit}
    lineage |= {f"dvc.{name}": digest for name, digest in candidate.data.items()}
    lineage |= {"sfd.protocol": tags["sfd.protocol"]} if "sfd.protocol" in tags else {}
    version = store.register(MODEL, model, run_id, _description(store, candidate, run_id), lineage)
    store.alias(MODEL, candidate.sweep, version)
    champion = store.version_tags(MODEL, CHAMPION)
    beaten = champion.get(MEASURE_TAG) != candidate.measure or float(champion.get(VALUE_TAG, "inf")) >= candidate.value
    if beaten:
        store.alias(MODEL, CHAMPION, version)
    return f"models:/{MODEL}@{CHAMPION if beaten else candidate.sweep}"


def _description(store: Store, candidate: Candidate, run_id: str) -> str:
    samples = f"#/experiments/{store.experiment_id}/runs/{run_id}/artifacts/images"
    data = "\n".join(f"- `{name}`: `{digest}`" for name, digest in candidate.data.items())
    return (
        f"Variant **{candidate.variant}**, best of sweep **{candidate.sweep}** by {candidate.number} {candidate.value:.6g}.\n\n"
        f"Its [run](#/experiments/{store.experiment_id}/runs/{run_id}) has the protocol, the curves and [samples]({samples}) "
        f"by training step.\n\n"
        f"To reproduce it: `git checkout {candidate.commit}`, then `dvc pull && dvc repro`. DVC hashes:\n\n{data}\n"
    )
