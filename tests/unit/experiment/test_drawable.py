from typing import Any

import pytest
import yaml

from sfd_core.diffusion.gaussian import TRAINING_LEVELS
from sfd_core.experiment.drawable import require_drawable
from sfd_core.experiment.grid import base_values
from sfd_core.experiment.params import parse_params
from sfd_core.experiment.values import set_value
from sfd_core.host.errors import ConfigError

STUDY = {"kind": "guidance", "variant": "any_order", "guide_step": None, "parts": "both", "scales": [2.0]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluate.sampler.guidance": "cfg"}, r"evaluate\.sampler\.guidance is cfg, but variant \w+ .* sees no labels"),
        (
            {"evaluate.sampler.guidance": "cfg", "train.conditional": True, "train.class_dropout": 0.0},
            r"train\.class_dropout is 0, so it is never trained without a label",
        ),
        ({"evaluate.sampler.evaluations": TRAINING_LEVELS + 1}, "is 1001, but active variant dit .* set it to 1000 or less"),
        ({"engine.sharding": "fsdp"}, "sharding is fsdp, but train.optimisation.optimizer muon needs whole weights"),
        (
            {"engine.sharding": "fsdp", "train.optimisation.optimizer": "adamw", "train.power_emas": [0.1]},
            "sharding is fsdp, but train.power_emas needs whole weights",
        ),
        ({"evaluate.sampler.guidance": "internal"}, "is internal, but variant .* has no inner head"),
        ({"evaluate.sampler.guidance": "semantic"}, "is semantic, but variant .* never lacks semantics"),
        ({"studies": {"a": STUDY | {"guidance": "cfg"}}}, r"studies\.a\.guidance is cfg, but variant any_order"),
        (
            {"variants.any_order.times.absent": 0.1, "studies": {"a": STUDY | {"guidance": "semantic"}}},
            r"studies\.a\.parts is both, but semantic guidance acts on texture alone",
        ),
        (
            {"train.conditional": True}
            | {"studies": {"a": STUDY | {"guidance": "cfg", "variant": "lightningdit", "parts": "semantic"}}},
            "parts is semantic, but variant lightningdit has no semantics",
        ),
        ({"studies": {"a": STUDY | {"guidance": "autoguidance"}}}, r"studies\.a\.guide_step is null, .* such as 200"),
        ({"studies": {"a": STUDY | {"guidance": "autoguidance", "guide_step": 250}}}, "is 250, .* at steps 200, 400, 600, 800"),
        (
            {"variants.any_order.inner": {"block": 2, "weight": 0.5}}
            | {"studies": {"a": STUDY | {"guidance": "internal", "guide_step": 200}}},
            "is 200, but guidance internal has no guide",
        ),
    ],
)
def test_what_would_be_refused_after_the_trainings_is_refused_before(changes: dict[str, Any], message: str) -> None:
    values = yaml.safe_load(yaml.safe_dump(base_values("avatars")))
    for key, value in changes.items():
        set_value(values, key, value)
    with pytest.raises(ConfigError, match=message):
        require_drawable(parse_params(values))
