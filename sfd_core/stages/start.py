"""How every stage starts: with the code that DVC was told of, and with parameters that stay what they are until its end."""

from functools import reduce
from pathlib import Path
from typing import Any

from sfd_core.experiment.code import require_recorded_code
from sfd_core.experiment.drawable import require_drawable
from sfd_core.experiment.inputs import require_recorded_inputs
from sfd_core.experiment.params import Params, load_params
from sfd_core.experiment.values import parse_yaml, read_utf8
from sfd_core.host.errors import ConfigError
from sfd_core.host.paths import OUTPUTS, check_before_outputs, stage_dir
from sfd_core.host.resume import drop_recorded

SHAPES_RESULTS = False
PIPELINE = Path("dvc.yaml")


def begin_stage(stage: str, variant: str = "") -> Params:
    """Return the parameters of the project for a stage, or one variant of a matrix stage.

    DVC records the parameters that it finds when a stage has ended. Where those of the stage, or files that it reads, are no
    longer what it ran with, its outputs are not written. Raises `ConfigError` for values that cannot be used, and for other
    code or other files than are recorded.
    """
    if OUTPUTS.is_symlink():
        raise ConfigError(
            f"{OUTPUTS} is a link, behind which DVC records nothing; make it a folder, or move the project to the other disk"
        )
    drop_recorded(Path("dvc.lock"))
    require_recorded_code(stage, stage_dir("code") / f"{stage}.json")
    params = load_params()
    if variant:
        params.variant(variant)  # an unknown one is reported before anything is read
    require_drawable(params)
    require_recorded_inputs(stage, params)
    began = _values(stage, variant, params)

    def require_unchanged() -> None:
        now = _values(stage, variant, load_params())
        changed = [name for name, value in began.items() if now[name] != value]
        if changed:
            raise ConfigError(
                f"{', '.join(changed)} of params.yaml changed while stage {stage} ran; DVC would record its result, that "
                "of the old values, as one of the new, so it is not written. Start the stage again, with either values"
            )
        require_recorded_inputs(stage, params)

    check_before_outputs(require_unchanged)
    return params


def _values(stage: str, variant: str, params: Params) -> dict[str, Any]:
    """Return what dvc.yaml names as the parameters of a stage; everything where there is no dvc.yaml."""
    plain = params.model_dump(mode="json")
    if not PIPELINE.is_file():
        return plain
    names = parse_yaml(read_utf8(PIPELINE), str(PIPELINE))["stages"][stage]["params"]
    keys = [name.replace("${item.variant}", variant) for name in names]
    return {key: reduce(lambda values, part: values[part], key.split("."), plain) for key in keys}
