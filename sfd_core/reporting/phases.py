"""The three phases in words and as a diagram, both taken from `Schedule`."""

import torch

from sfd_core.diffusion.schedule import Phase, Schedule
from sfd_core.reporting.palette import PHASE_COLOURS

MUTED = "#59626c"
WIDTH, HEIGHT = 520, 276
LEFT, RIGHT, TOP, BOTTOM = 46.0, 500.0, 46.0, 226.0
NAMED_WIDTH = 78
"""Narrower bands carry no name."""
BAND_NAMES = {
    Phase.SEMANTIC: ("semantic", "initialisation"),
    Phase.BOTH: ("asynchronous", "generation"),
    Phase.TEXTURE: ("texture", "completion"),
}
WHAT_HAPPENS = {
    Phase.SEMANTIC: "semantics take shape while texture is pure noise",
    Phase.BOTH: "both move, semantics ahead of texture",
    Phase.TEXTURE: "semantics are finished, texture catches up",
}


def phase_words(phase: Phase, composite: bool, delta_t: float) -> dict[str, str]:
    """Name a phase, say what happens in it and give its colour, for a variant with or without semantics."""
    name, says = " ".join(BAND_NAMES[phase]), WHAT_HAPPENS[phase]
    if not composite:
        name, says = "texture generation", "there is no semantic latent; texture is denoised alone"
    elif delta_t == 0:
        name, says = "synchronous generation", "semantics and texture move at the same time"
    return {"name": name, "says": says, "colour": f"var(--phase-{phase.value})"}


def phases_svg(delta_t: float, background: str | None = None) -> str:
    """Draw both local times over global time with the phases as bands, as an SVG document; it follows the page's colours."""
    schedule = Schedule.offset(delta_t)
    said = "; ".join(f"{' '.join(BAND_NAMES[span.phase])} from {span.start:g} to {span.stop:g}" for span in schedule.spans)
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="system-ui, sans-serif" font-size="12"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
        f"<title>Local times over global time with offset {delta_t:g}: {said}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{background}"/>' if background else "",
        *_bands(schedule),
        *_curves(schedule),
        *_axes(schedule),
        "</svg>",
    ]
    return "".join(parts)


def _bands(schedule: Schedule) -> list[str]:
    shares, parts = schedule.phase_shares(), []
    for span in schedule.spans:
        start, width = _x(span.start, schedule), _x(span.stop, schedule) - _x(span.start, schedule)
        colour, place = _colour(span.phase), f'x="{start:.1f}" width="{width:.1f}"'
        parts.append(f'<rect {place} y="{TOP}" height="{BOTTOM - TOP}" fill="{colour}" opacity=".14"/>')
        parts.append(f'<rect {place} y="{TOP - 4}" height="4" fill="{colour}"/>')
        for line, word in enumerate(BAND_NAMES[span.phase] if width > NAMED_WIDTH else ()):
            parts.append(_text(start + 2, TOP - 24 + 14 * line, word, "start", colour, bold=True))
        parts.append(_text(start + width / 2, BOTTOM - 8, f"{shares[span.phase]:.1%}", "middle"))
    return parts


def _curves(schedule: Schedule) -> list[str]:
    half = torch.tensor(0.5, dtype=torch.float64)
    parts = []
    for phase, name, dash in ((Phase.SEMANTIC, "t_sem", "none"), (Phase.TEXTURE, "t_tex", "7 4")):
        points = " ".join(f"{_x(knot.u, schedule):.1f},{_y(getattr(knot, name)):.1f}" for knot in schedule.knots)
        line = f'fill="none" stroke="{_colour(phase)}" stroke-width="3" stroke-dasharray="{dash}"'
        parts.append(f'<polyline points="{points}" {line}/>')
        # each name stands on the outer side of its line, half-way up
        side, anchor = (-12, "end") if phase is Phase.SEMANTIC else (24, "start")
        u = schedule.global_times(half, semantic=phase is Phase.SEMANTIC)
        parts.append(_text(_x(float(u), schedule) + side, _y(0.5) + 4, name, anchor, _colour(phase), bold=True))
    return parts


def _axes(schedule: Schedule) -> list[str]:
    middle = (TOP + BOTTOM) / 2
    return [
        *(_text(_x(knot.u, schedule), BOTTOM + 17, f"{knot.u:g}", "middle") for knot in schedule.knots),
        *(_text(LEFT - 8, _y(t) + 4, f"{t}", "end") for t in (0, 1)),
        _text((LEFT + RIGHT) / 2, BOTTOM + 38, "global time u; percentages: share of training samples", "middle"),
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
