"""What stages `train`, `evaluate` and `studies` would refuse after the stages before them, found before these.

It is no check of `Params`: results are also shown where parameters were edited since, with values of both.
"""

from collections.abc import Sequence

from sfd_core.experiment.params import GuidanceStudy, Params, VariantParams
from sfd_core.experiment.sizes import TRAINING_LEVELS
from sfd_core.experiment.snapshots import snapshot_steps
from sfd_core.host.errors import ConfigError

SHAPES_RESULTS = False


def require_drawable(params: Params) -> None:
    """Raise `ConfigError` for guidance or evaluations that active variants do not know, and for snapshots never taken.

    So it does for trainings in shards that need whole weights.
    """
    _require_whole_weights(params)
    sampler = params.evaluate.sampler
    for name in params.active:
        variant = params.variants[name]
        _require_guidable(params, name, variant, sampler.guidance, "evaluate.sampler.guidance")
        if variant.family == "gaussian" and sampler.evaluations > TRAINING_LEVELS:
            raise ConfigError(
                f"evaluate.sampler.evaluations is {sampler.evaluations}, but active variant {name} is DiT, which has "
                f"{TRAINING_LEVELS} noise levels; set it to {TRAINING_LEVELS} or less"
            )
    for key, study in params.active_studies().items():
        if isinstance(study, GuidanceStudy):
            _require_guidable(params, study.variant, params.variants[study.variant], study.guidance, f"studies.{key}.guidance")
            _require_guide(params, study, f"studies.{key}.guide_step")
            variant = params.variants[study.variant]
            require_parts(study.guidance, study.parts, study.variant, variant, f"studies.{key}.parts")


def _require_whole_weights(params: Params) -> None:
    if params.engine.sharding == "none":
        return
    muon = params.train.optimisation.optimizer == "muon"
    for key, needed in {"optimisation.optimizer muon": muon, "power_emas": bool(params.train.power_emas)}.items():
        if needed:
            raise ConfigError(
                f"engine.sharding is {params.engine.sharding}, but train.{key} needs whole weights; set it to none"
            )


def _require_guidable(params: Params, name: str, variant: VariantParams, guidance: str, key: str) -> None:
    unlabelled = None
    if not params.train.conditional:
        unlabelled = "train.conditional is false, so it sees no labels"
    elif params.train.class_dropout == 0:
        unlabelled = "train.class_dropout is 0, so it is never trained without a label"
    lacks = {
        "cfg": unlabelled,
        "internal": None if variant.inner is not None else "it has no inner head; set `inner`",
        "semantic": None if getattr(variant.times, "absent", 0) else "its training never lacks semantics; set `times.absent`",
    }.get(guidance)
    if lacks:
        raise ConfigError(f"{key} is {guidance}, but variant {name} cannot be guided so: {lacks}, or choose another guidance")


def _require_guide(params: Params, study: GuidanceStudy, key: str) -> None:
    step, steps = study.guide_step, snapshot_steps(params.train)
    if step is None and study.guidance == "autoguidance":
        raise ConfigError(f"{key} is null, but autoguidance needs a guide; name a snapshot, such as {steps[0]}")
    if step is not None and study.guidance not in ("autoguidance", "semantic"):
        raise ConfigError(f"{key} is {step}, but guidance {study.guidance} has no guide; set it to null")
    if step is not None and step not in steps:
        listed = ", ".join(str(taken) for taken in steps)
        raise ConfigError(
            f"{key} is {step}, but snapshots are taken at steps {listed}; name one of them, or change train.snapshots"
        )


def require_parts(guidance: str, parts: str, name: str, variant: VariantParams, key: str) -> None:
    """Raise `ConfigError` if the `parts` of variant `name` that `key` guides are none that the guidance acts on."""
    if guidance == "semantic" and parts != "texture":
        raise ConfigError(f"{key} is {parts}, but semantic guidance acts on texture alone; set it to texture")
    if parts == "semantic" and variant.semantic == "none":
        raise ConfigError(f"{key} is semantic, but variant {name} has no semantics; set it to texture")


def require_fixed_steps(options: Sequence[str], variant: VariantParams, solver: str) -> None:
    """Raise `ConfigError` for options of the steps of a denoiser like `variant` where `solver` chooses them itself."""
    if options and variant.family == "flow" and solver == "dopri5":
        raise ConfigError(f"{' and '.join(options)} would change nothing: dopri5 chooses its own steps; leave it out")
