"""The order in which variants are denoised, in words and as a diagram, taken from `Schedule`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

from sfd_core.diffusion.schedule import Knot, Phase, Schedule
from sfd_core.experiment.params import SamplerParams, VariantParams
from sfd_core.reporting.palette import PHASE_COLOURS
from sfd_core.reporting.sources import VariantOutputs

MUTED = "#59626c"
WIDTH, HEIGHT = 520, 276
LEFT, RIGHT, TOP, BOTTOM = 46.0, 500.0, 46.0, 226.0
NAMED_WIDTH = 78
"""Narrower bands carry no name."""
ALONE = {
    (Phase.SEMANTIC, 0.0): ("semantic initialisation", "semantics take shape while texture is pure noise"),
    (Phase.SEMANTIC, 1.0): ("semantic completion", "texture is finished, semantics catch up"),
    (Phase.TEXTURE, 0.0): ("texture initialisation", "texture takes shape while semantics are pure noise"),
    (Phase.TEXTURE, 1.0): ("texture completion", "semantics are finished, texture catches up"),
}
"""Phase and local time of the part that stands still -> name and what happens."""
TRAINED = {"global": "", "own": ", trained one part at a time", "independent": ", trained in any order"}
"""What the training times add to the description of a variant."""


@dataclass(frozen=True)
class Band:
    """Global times from `start` to `stop` in which the same parts are denoised."""

    phase: Phase
    start: float
    stop: float
    name: str
    """Two words."""
    says: str
    """What happens."""


def bands(schedule: Schedule, composite: bool = True) -> list[Band]:
    """Return the bands of a schedule in order, for a variant with or without semantics."""
    found = []
    for phase, group in groupby(schedule.spans, key=lambda span: span.phase):
        spans = list(group)
        start, stop = spans[0].start, spans[-1].stop
        words = _words(phase, [knot for knot in schedule.knots if start <= knot.u <= stop])
        alone = ("texture generation", "there is no semantic latent; texture is denoised alone")
        found.append(Band(phase, start, stop, *(words if composite else alone)))
    return found


def _words(phase: Phase, knots: Sequence[Knot]) -> tuple[str, str]:
    """Name a band with these corners and say what happens in it."""
    if phase is not Phase.BOTH:
        still = knots[0].t_sem if phase.texture_acts else knots[0].t_tex
        return ALONE.get((phase, still), (f"{phase.value} generation", f"only {phase.value} moves"))
    ahead = {knot.t_sem > knot.t_tex for knot in knots if knot.t_sem != knot.t_tex}
    if not ahead:
        return "synchronous generation", "semantics and texture move at the same time"
    first = "each ahead for a while" if len(ahead) == 2 else f"{'semantics' if True in ahead else 'texture'} ahead"
    return "asynchronous generation", f"both move, {first}"


def describe(variant: VariantParams, sampler: SamplerParams) -> str:
    """Say what a variant is and, where it was not sampled as it was trained, how it was sampled."""
    if variant.model == "dit":
        return "texture only, ε-prediction with learned variance"
    latents = {"none": "texture only, velocity", "vae": "texture and semantics", "pca": "texture and PCA of encoder tokens"}
    words = latents[variant.semantic]
    if variant.semantic != "none":
        leader = "semantics lead" if variant.delta_t > 0 else "texture leads"
        order = f"{leader} by {abs(variant.delta_t):g}" if variant.delta_t else "denoised at the same time"
        words += ", along a path of its own" if variant.path else f", {order}"
        words += TRAINED[variant.times.kind]
        if Schedule.of(variant, sampler) != Schedule.of(variant):
            words += ", sampled along another path" if sampler.path else f", sampled at offset {sampler.delta_t:g}"
    return words + (f", REPA {variant.repa.weight:g}" if variant.repa.weight > 0 else "")


def leading(variants: Iterable[VariantOutputs]) -> VariantOutputs | None:
    """Return the variant that shows SFD's schedule best, None if none has semantics.

    Those trained with one global time come first, then those in which semantics begin the longest before texture.
    """

    def shows(variant: VariantOutputs) -> tuple[bool, float]:
        schedule = Schedule.of(variant.params, variant.sampler)
        return variant.params.times.kind == "global", schedule.interval(semantic=False)[0] - schedule.interval(semantic=True)[0]

    return max((variant for variant in variants if variant.params.semantic != "none"), key=shows, default=None)


def training_shares(variant: VariantOutputs) -> list[float] | None:
    """Return the share of training samples in each band; None where it was trained otherwise than it was sampled."""
    schedule, found = Schedule.of(variant.params), bands(Schedule.of(variant.params, variant.sampler))
    # the shares are by phase, so each has to come once
    if variant.params.times.kind != "global" or bands(schedule) != found or len({band.phase for band in found}) < len(found):
        return None
    return [schedule.phase_shares()[band.phase] for band in found]


def phases_svg(schedule: Schedule, shares: Sequence[float] | None, background: str | None = None) -> str:
    """Draw both local times over global time with the bands, as an SVG document; it follows the page's colours.

    `shares` are of training samples, by band.
    """
    said = "; ".join(f"{band.name} from {band.start:g} to {band.stop:g}" for band in bands(schedule))
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="system-ui, sans-serif" font-size="12"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
        f"<title>Local times over global time: {said}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{background}"/>' if background else "",
        *_bands(schedule, shares),
        *_curves(schedule),
        *_axes(schedule, "; percentages: share of training samples" if shares else ""),
        "</svg>",
    ]
    return "".join(parts)


def _bands(schedule: Schedule, shares: Sequence[float] | None) -> list[str]:
    parts = []
    for index, band in enumerate(bands(schedule)):
        start, width = _x(band.start, schedule), _x(band.stop, schedule) - _x(band.start, schedule)
        colour, place = _colour(band.phase), f'x="{start:.1f}" width="{width:.1f}"'
        parts.append(f'<rect {place} y="{TOP}" height="{BOTTOM - TOP}" fill="{colour}" opacity=".14"/>')
        parts.append(f'<rect {place} y="{TOP - 4}" height="4" fill="{colour}"/>')
        for line, word in enumerate(band.name.split() if width > NAMED_WIDTH else ()):
            parts.append(_text(start + 2, TOP - 24 + 14 * line, word, "start", colour, bold=True))
        if shares:
            parts.append(_text(start + width / 2, BOTTOM - 8, f"{shares[index]:.1%}", "middle"))
    return parts


def _curves(schedule: Schedule) -> list[str]:
    half = torch.tensor(0.5, dtype=torch.float64)
    semantic_left = bool(schedule.global_times(half, semantic=True) <= schedule.global_times(half, semantic=False))
    parts = []
    for phase, name, dash in ((Phase.SEMANTIC, "t_sem", "none"), (Phase.TEXTURE, "t_tex", "7 4")):
        points = " ".join(f"{_x(knot.u, schedule):.1f},{_y(getattr(knot, name)):.1f}" for knot in schedule.knots)
        line = f'fill="none" stroke="{_colour(phase)}" stroke-width="3" stroke-dasharray="{dash}"'
        parts.append(f'<polyline points="{points}" {line}/>')
        # each name stands on the outer side of its line, half-way up
        side, anchor = (-12, "end") if phase.semantic_acts == semantic_left else (24, "start")
        u = schedule.global_times(half, semantic=phase is Phase.SEMANTIC)
        parts.append(_text(_x(float(u), schedule) + side, _y(0.5) + 4, name, anchor, _colour(phase), bold=True))
    return parts


def _axes(schedule: Schedule, note: str) -> list[str]:
    middle = (TOP + BOTTOM) / 2
    return [
        *(_text(_x(knot.u, schedule), BOTTOM + 17, f"{knot.u:g}", "middle") for knot in schedule.knots),
        *(_text(LEFT - 8, _y(t) + 4, f"{t}", "end") for t in (0, 1)),
        _text((LEFT + RIGHT) / 2, BOTTOM + 38, f"global time u{note}", "middle"),
        f'<g transform="translate(16 {middle}) rotate(-90)">{_text(0, 0, "noise → data", "middle")}</g>',
    ]


def _x(u: float, schedule: Schedule) -> float:
    return LEFT + u / schedule.end * (RIGHT - LEFT)


def _y(t: float) -> float:
    return BOTTOM - t * (BOTTOM - TOP)


def _colour(phase: Phase) -> str:
    return f"var(--phase-{phase.value}, {PHASE_COLOURS[phase.value]})"


def _text(x: float, y: float, words: str, anchor: str, colour: str = f"var(--muted, {MUTED})", *, bold: bool = False) -> str:
    weight = ' font-weight="700"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"{weight}>{words}</text>'
