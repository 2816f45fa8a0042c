"""Registers the best model of a sweep: `mlflow.pyfunc.load_model("models:/semantic-first-diffusion@champion")`.

A version stores its number, the protocol of that number, and the commit that reproduces it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sfd_core.tracking.store import LICENCE_TAG, Store
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
    version = store.register(MODEL, model, run_id, _card(store, candidate, run_id), lineage)
    store.alias(MODEL, candidate.sweep, version)
    champion = store.version_tags(MODEL, CHAMPION)
    beaten = champion.get(MEASURE_TAG) != candidate.measure or float(champion.get(VALUE_TAG, "inf")) >= candidate.value
    if beaten:
        store.alias(MODEL, CHAMPION, version)
    return f"models:/{MODEL}@{CHAMPION if beaten else candidate.sweep}"


def _card(store: Store, candidate: Candidate, run_id: str) -> str:
    """Return the model card: what the model is, its data, their licence, its number and protocol, how to use and remake it."""
    run = store.run(run_id)
    page = f"#/experiments/{store.experiment_id}/runs/{run_id}"
    kind = " ".join(run.params[name] for name in ("variant.model", "variant.size") if name in run.params)
    rows = {
        "model": f"denoiser {kind} of variant **{candidate.variant}**, best of sweep **{candidate.sweep}**; code: Apache-2.0",
        "data": "; ".join(run.data) or "unknown",
        "licence of the data": run.tags.get(LICENCE_TAG, "unknown"),
        "measured": f"{candidate.number} {candidate.value:.6g} ({candidate.measure})",
        "protocol": f"`{run.tags.get('sfd.protocol', 'unknown')}`",
        "draws": "Euler in the trained order, without guidance but for the table's: `sfd evaluate` draws by the protocol",
        "use": f'`mlflow.pyfunc.load_model("models:/{MODEL}@{candidate.sweep}")` or `mlflow models serve`',
        "more": f"[run]({page}) with curves, [samples]({page}/artifacts/images) by training step",
        "remake": f"`git checkout {candidate.commit}`, then `dvc pull && dvc repro`",
    }
    hashes = "\n".join(f"- `{name}`: `{digest}`" for name, digest in candidate.data.items())
    table = "\n".join(f"| {name} | {value.replace('|', '/')} |" for name, value in rows.items())
    return f"| | |\n|---|---|\n{table}\n\nDVC hashes:\n\n{hashes}\n"
