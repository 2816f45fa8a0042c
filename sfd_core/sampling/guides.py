"""Which weak models can guide a denoiser (AutoGuidance)."""

from sfd_core.diffusion.schedule import Schedule
from sfd_core.experiment.params import SamplerParams, VariantParams
from sfd_core.host.errors import ConfigError


def require_same_order(guide: VariantParams, variant: VariantParams, sampler: SamplerParams) -> None:
    """Raise `ConfigError` if the guide of a denoiser of `variant` was trained along another path than it is asked about.

    A guide fits that knows every order, the order that is sampled, or the one order that the denoiser knows, too.
    """
    if sampler.guidance != "autoguidance" or guide.semantic == "none" or guide.times.kind == "independent":
        return
    own, sampled = Schedule.of(guide), Schedule.of(variant, sampler)
    if own != sampled and (own != Schedule.of(variant) or variant.times.kind == "independent"):
        raise ConfigError(
            f"the guide was trained along the path {own.corners} of (t_tex, t_sem), but samples are drawn along "
            f"{sampled.corners}, so its velocities mean nothing there; train the guide in the same order, or in any "
            "(times of kind independent), or choose another guidance"
        )
