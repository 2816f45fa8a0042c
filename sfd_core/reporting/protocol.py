"""Hashes of the parameters behind recorded numbers, which compare with others only if these are equal."""

from sfd_core.experiment.params import LATENTS, Params, VariantParams, fingerprint

PROTOCOL = ["latents", "evaluation", "recipe"]
"""Hashes of the parameters behind a recorded curve."""


def measured_with(params: Params) -> dict[str, str]:
    """Return the hashes of what all variants share: `latents` and `evaluation`."""
    sampler = params.evaluate.sampler.model_copy(update={"batch_size": 1})
    compared_with = params.reference.model_dump(include={"adm_npz", "inception_weights"}, exclude_none=True)
    evaluation = [params.reference.extractors, sampler, *([compared_with] if compared_with else [])]
    return {
        "latents": fingerprint(*(getattr(params, group) for group in LATENTS)),
        "evaluation": fingerprint(*evaluation),
    }


def protocol(params: Params, variant: VariantParams) -> dict[str, str]:
    """Return the hashes `PROTOCOL` of a variant."""
    recipe = [params.train, variant, *([params.schedule] if variant.found_path else [])]
    return {**measured_with(params), "recipe": fingerprint(*recipe)}
