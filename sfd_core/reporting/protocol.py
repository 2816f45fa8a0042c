"""Hashes of the parameters and input files behind recorded numbers, which compare with others only if these are equal."""

from collections.abc import Mapping, Sequence

from sfd_core.experiment.params import LATENTS, Params, VariantParams, fingerprint

PROTOCOL = ["latents", "evaluation", "recipe"]
"""Hashes of the parameters and input files behind a recorded curve."""


def measured_with(params: Params, inputs: Mapping[str, str]) -> dict[str, str]:
    """Return the hashes of what all variants share: `latents` and `evaluation`; see `inputs.all_recorded_digests`."""
    sampler = params.evaluate.sampler.model_copy(update={"batch_size": 1})
    compared_with = params.reference.model_dump(include={"adm_npz", "inception_weights"}, exclude_none=True)
    evaluation = [params.reference.extractors, sampler, *([compared_with] if compared_with else [])]
    return {
        "latents": fingerprint(*(getattr(params, group) for group in LATENTS), *_files(inputs, LATENTS)),
        "evaluation": fingerprint(*evaluation, *_files(inputs, ("reference", "evaluate"))),
    }


def protocol(params: Params, variant: VariantParams, inputs: Mapping[str, str]) -> dict[str, str]:
    """Return the hashes `PROTOCOL` of a variant."""
    return {**measured_with(params, inputs), "recipe": recipe(params, variant)}


def recipe(params: Params, variant: VariantParams) -> str:
    """Return the hash of how a variant is trained."""
    return fingerprint(params.train, variant, *([params.schedule] if variant.found_path else []))


def _files(inputs: Mapping[str, str], groups: Sequence[str]) -> list[dict[str, str]]:
    """Return the hashes of the files that the keys of `groups` name, in a list that is empty if there are none."""
    found = {key: digest for key, digest in inputs.items() if key.partition(".")[0] in groups}
    return [found] if found else []
