"""The points of a sweep: every combination of variants, values and seeds, each a complete, checked experiment."""

import copy
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import model_validator

from sfd_core.experiment.inputs import input_digests, named_inputs, require_inputs, require_none_in_outputs
from sfd_core.experiment.params import LATENTS, Group, Params, VariantParams, fingerprint, load_params, parse_params
from sfd_core.experiment.presets import load_preset
from sfd_core.experiment.values import set_value
from sfd_core.host.errors import ConfigError

CURRENT = "params.yaml"
"""In place of a preset's name: the project's own parameters."""
SHARED = (*LATENTS, "reference")
SHARED_OF_EVALUATE = ("final_samples", "snapshot_samples", "kid_subset_size")
"""Values that the stages before training read: points with equal ones share their results."""
SHARED_TARGETS = ("encode", "reference")
MOST_POINTS = 1000
LONGEST_NAME = 200
"""Letters of a point's name, which is a file of git: a path of many corners would make a longer one."""
Method = Literal["tpe", "random", "even"]
"""How a search draws, see `experiment.search`."""


class Range(Group):
    """Numbers between two bounds."""

    low: float
    high: float
    log: bool = False
    """Draw evenly over the logarithm."""
    whole: bool = False
    """Draw whole numbers."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"{self.low} to {self.high} is no range; low is below high, and above 0 if log is true")
        if self.whole and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(f"whole is true, but {self.low} to {self.high} are not whole numbers; give whole bounds")
        return self


@dataclass(frozen=True)
class Space:
    """What varies in a sweep, and what all its points have in common."""

    variants: Sequence[str]
    """Names of `variants` in the parameters; empty for all that are active."""
    grid: Mapping[str, Sequence[Any]]
    """Dotted key -> values. A key of a variant, such as `delta_t` or `repa.weight`, is set in the point's variant."""
    seeds: Sequence[int]
    """Seeds of training; empty keeps each variant's own."""
    changes: Mapping[str, Any]
    """Dotted key -> the value for all points."""
    draws: Sequence[Mapping[str, Any]] = ()
    """Combinations of values by key, instead of or beside the grid."""

    @property
    def keys(self) -> list[str]:
        """The keys that vary, without the seed."""
        return list(dict.fromkeys([*(key for draw in self.draws for key in draw), *self.grid]))


@dataclass(frozen=True)
class Point:
    """One experiment of a sweep: one variant with all its parameters."""

    name: str
    """What differs, in letters that a git ref allows."""
    variant: str
    settings: Mapping[str, Any]
    """The swept keys and their values, and the seed."""
    values: Mapping[str, Any]
    """Raw parameters, complete, of this variant alone."""
    key: str
    """Hash of parameters, code, and files at the paths of the parameters: equal keys are one experiment, in any sweep."""
    shared: str
    """Hash of everything that its stages before training depend on."""
    inputs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Stage -> key -> hash of the files there, as in its key; see `input_digests`."""

    @property
    def target(self) -> str:
        """The stage that completes the point."""
        return f"evaluate@{self.variant}"


def base_values(preset: str, project: Path = Path()) -> dict[str, Any]:
    """Return the raw parameters of a preset or, for `CURRENT`, of the project. Raises `ConfigError`."""
    if preset == CURRENT:
        return load_params(project / CURRENT).given()
    return dict(load_preset(preset, project / "presets").values)


def plan_points(values: Mapping[str, Any], space: Space, code: str, project: Path = Path()) -> list[Point]:
    """Return all points, each once, checked like a parameter file, inputs included.

    Raises `ConfigError` or `DataError` that names the first invalid point.
    """
    changed = copy.deepcopy(dict(values))
    for key, value in space.changes.items():
        if not _is_of_variant(key):
            set_value(changed, key, value)
    base = parse_params(changed, source="the experiment that the sweep varies")
    wanted = list(dict.fromkeys(space.variants or base.active))
    variants, _ = split_variants(base, wanted, filter(_is_of_variant, space.keys))
    _require_values(space, len(variants))

    @cache
    def digests(named: tuple[tuple[str, str], ...]) -> dict[str, dict[str, str]]:
        return input_digests(dict(named), project=project)

    def inputs_of(params: Params) -> dict[str, dict[str, str]]:
        return digests(tuple(named_inputs(params, project).items()))

    points: dict[str, Point] = {}
    keys = [*space.grid, *(["seed"] if space.seeds else [])]
    axes = [*space.grid.values(), *([space.seeds] if space.seeds else [])]
    for name, drawn, *chosen in product(variants, space.draws or [{}], *axes):
        point = _point(changed, name, {**drawn, **dict(zip(keys, chosen, strict=True))}, space, code, inputs_of)
        points.setdefault(point.key, point)
    for point in points.values():
        params = parse_params(point.values)
        require_none_in_outputs(params, project)
        require_inputs(params, project)
    names = Counter(point.name for point in points.values())
    return [_marked(point) if names[point.name] > 1 or len(point.name) > LONGEST_NAME else point for point in points.values()]


def split_variants(params: Params, names: Sequence[str], keys: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return which of the variants have every value of `keys`, so that it can vary in them, and which have not.

    Raises `ConfigError` for an unknown variant or key, and if no variant has the values.
    """
    wanted = list(keys)
    if unknown := [key for key in wanted if key.partition(".")[0] not in VariantParams.model_fields]:
        raise ConfigError(f"{unknown[0]!r} is no value of a variant; those are {', '.join(VariantParams.model_fields)}")
    variants = {name: params.variant(name) for name in names}
    having = [name for name, variant in variants.items() if all(map(variant.has, wanted))]
    if names and not having:
        others = [name for name, variant in params.variants.items() if all(map(variant.has, wanted))]
        advice = f"it can in {', '.join(others)}" if others else "no variant has it"
        raise ConfigError(f"{', '.join(wanted)} cannot vary in {', '.join(names)}; {advice}")
    return having, [name for name in names if name not in having]


def shared_groups(points: Sequence[Point]) -> list[list[Point]]:
    """Return the points in groups that share the stages before training."""
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(point.shared, []).append(point)
    return list(groups.values())


def _point(
    values: Mapping[str, Any],
    variant: str,
    settings: dict[str, Any],
    space: Space,
    code: str,
    inputs_of: Callable[[Params], dict[str, dict[str, str]]],
) -> Point:
    own = copy.deepcopy(dict(values)) | {"active": [variant], "studies": {}}
    own["variants"] = {variant: own["variants"][variant]}
    own["report"] = own["report"] | {"baseline": variant}
    for key, value in {**{key: value for key, value in space.changes.items() if _is_of_variant(key)}, **settings}.items():
        set_value(own["variants"][variant] if _is_of_variant(key) else own, key, value)
    settings = {**settings, "seed": own["variants"][variant]["seed"]}
    name = point_name(variant, settings)
    params = parse_params(own, source=f"point {name}")
    plain = params.given()
    inputs = inputs_of(params)
    read = fingerprint(code, inputs) if any(inputs.values()) else code
    return Point(name, variant, settings, plain, fingerprint(plain, read), _shared_key(plain, read), inputs)


def _marked(point: Point) -> Point:
    """Return a point whose name is too long, or that of another one, with a hash of its settings in the name."""
    return replace(point, name=f"{point.name[:LONGEST_NAME]}-{fingerprint(dict(point.settings))[:8]}")


def point_name(variant: str, settings: Mapping[str, Any]) -> str:
    """Return `variant-key-value-...` in letters that git refs and file names allow."""
    words = [variant, *(word for key, value in settings.items() for word in (key.split(".")[-1], _word(value)))]
    return "-".join(words)


def _word(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
    return re.sub(r"[^A-Za-z0-9_+]+", "_", text.replace(".", "p").replace("-", "m") if _is_number(value) else text).strip("_")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_of_variant(key: str) -> bool:
    """Whether a key is one of `VariantParams`; no group of the experiment has the name of one."""
    first = key.partition(".")[0]
    return first in VariantParams.model_fields and first not in Params.model_fields


def _shared_key(values: Mapping[str, Any], code: str) -> str:
    evaluate = {key: values["evaluate"][key] for key in SHARED_OF_EVALUATE}
    return fingerprint({name: values[name] for name in SHARED}, evaluate, code)


def _require_values(space: Space, variants: int) -> None:
    count = variants * max(1, len(space.seeds)) * max(1, len(space.draws))
    for key, values in space.grid.items():
        if not values:
            raise ConfigError(f"the sweep over {key} has no value; give at least one")
        count *= len(values)
    for key in space.keys:
        if key == "seed":
            raise ConfigError("seed is swept by the list of seeds; leave it out of the grid")
        if key in space.changes:
            raise ConfigError(f"{key} is swept and also set to {space.changes[key]!r} for all points; leave one of them out")
    if count > MOST_POINTS:
        raise ConfigError(f"the sweep has {count:,} points, more than {MOST_POINTS:,}; sweep fewer values at a time")
