"""From measurements to `docs/performance.md`: results are kept in a file, tables are written between the page's markers.

    python -m bench.performance_page RESULTS_OF_PYTEST_BENCHMARK --page docs/performance.md

The newest result of every benchmark is kept in `performance.json` beside the page, with the machine and the commit that it was
measured on, so that one benchmark can be repeated alone, or on a machine with a GPU. A table stands between
`<!-- table: NAME -->` and `<!-- end -->`; what stands around is written by hand and stays.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.cost_law import slope
from bench.operations import GROUPS, OUTSIDE
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullFormatter

from sfd_core.host.errors import DataError
from sfd_core.host.paths import atomic_path, write_json
from sfd_core.reporting.charts import INK, MUTED, RULE, quiet, save_figure
from sfd_core.reporting.palette import line_styles

MARKED = re.compile(r"<!-- table: ([a-z-]+) -->\n.*?<!-- end -->", re.DOTALL)
FIGURE, TIMELINE = "cost_law.png", "timeline.png"
ONCE = {"processes": 31, "python": 11, "S3": 202, "MLFLOW": 400, "PREFECT": 40}
"""What a point took before its cost was looked at."""
SHOWN_SECONDS = 0.25

Result = Mapping[str, Any]
Rows = Iterable[Sequence[str]]


def merge(kept: dict[str, Any], measured: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is kept after a further run of pytest-benchmark: its results replace those of the same name.

    Kept are `runs`, the facts of every run that a result is of, and `results` by name.
    """
    commit = measured["commit_info"]
    run = measured["datetime"]
    facts = measured["facts"] | {"commit": commit["id"][:8] + ("+" if commit["dirty"] else "")}
    results = dict(kept.get("results", {}))
    for benchmark in measured["benchmarks"]:
        results[benchmark["name"]] = {
            "run": run,
            "file": Path(benchmark["fullname"].split("::")[0]).name,
            "seconds": benchmark["stats"]["median"],
            "rounds": benchmark["stats"]["rounds"],
            **benchmark["extra_info"],
        }
    used = {result["run"] for result in results.values()}
    runs = {name: known for name, known in {**kept.get("runs", {}), run: facts}.items() if name in used}
    return {"runs": runs, "results": dict(sorted(results.items()))}


def fill(page: str, kept: Mapping[str, Any]) -> str:
    """Return the page with every table written anew. Raises `DataError` for a marker that names none."""

    def table(match: re.Match[str]) -> str:
        name = match[1]
        if name not in TABLES:
            raise DataError(f"the page marks a table {name!r}, but there are only {', '.join(TABLES)}; correct the marker")
        chosen = TABLES[name].of(kept["results"])
        body = TABLES[name].render(chosen) + _measured_on(chosen, kept["runs"]) if chosen else ""
        return f"<!-- table: {name} -->\n{body}<!-- end -->"

    return MARKED.sub(table, page)


def cost_law_figure(results: Mapping[str, Result]) -> Figure:
    """Draw step time, images a second and memory against every axis of the cost law, measured and expected."""
    axes_of = {result["axis"]: result["points"] for result in _in_order(results)}
    figure = Figure(figsize=(11, 7.2), layout="constrained")
    grid = figure.subplots(len(MEASURES), len(axes_of), squeeze=False)
    for column, (axis, points) in enumerate(axes_of.items()):
        x = [point["x"][axis] for point in points]
        for row, (measured, expected, title) in enumerate(MEASURES):
            panel = grid[row][column]
            _panel(panel, x, [point[measured] for point in points], [point[expected] for point in points])
            if column == 0:
                panel.set_ylabel(title, color=MUTED)
        grid[0][column].set_title(AXIS_TITLES[axis], loc="left", fontsize=10, color=INK)
    grid[0][0].legend(frameon=False, fontsize=8.5, labelcolor=MUTED, loc="upper left")
    return figure


MEASURES = (
    ("seconds", "expected_seconds", "seconds a step (a batch read)"),
    ("images_per_second", "expected_images_per_second", "images a second"),
    ("memory", "expected_memory", "peak memory, bytes"),
)
AXIS_TITLES = {
    "parameters": "parameters",
    "tokens": "tokens an image",
    "batch": "images a step",
    "rows": "images in the data set",
}


def _panel(panel: Axes, x: list[float], measured: list[Any], expected: list[Any]) -> None:
    _, _, blue, orange = (style.light for style in line_styles(4))
    if None in measured:
        panel.set_axis_off()
        return
    panel.plot(x, expected, color=blue, linewidth=1.5, linestyle="dashed", label="expected")
    panel.plot(x, measured, color=orange, linewidth=2, marker="o", label="measured")
    panel.set(xscale="log", yscale="log")
    words = f"slope {slope(x, measured):+.2f}\nexpected {slope(x, expected):+.2f}"
    falls = measured[-1] < measured[0]
    place, align = (0.96, "top") if falls else (0.04, "bottom")
    panel.text(0.97, place, words, transform=panel.transAxes, ha="right", va=align, fontsize=8.5, color=MUTED)
    panel.set_xticks(x, [EngFormatter(sep="")(float(f"{value:.3g}")) for value in x])
    panel.yaxis.set_major_formatter(EngFormatter(sep=""))
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_minor_formatter(NullFormatter())
    low, high = panel.get_ylim()
    if high < 20 * low:  # room for the lines to be seen as flat, and a power of ten to read them by
        panel.set_ylim(low / 3, high * 3)
    quiet(panel)


def _training(results: Mapping[str, Result]) -> str:
    return _table(RATE_HEADS, (_against_eager(result) for result in _by_size(results)))


def _compiled(results: Mapping[str, Result]) -> str:
    rows = ((*_against_eager(result), f"{result['first_step']:,.0f}") for result in _by_size(results))
    return _table((*RATE_HEADS, "first step, seconds"), rows)


RATE_HEADS = (
    "network", "channels", "tokens", "batch", "threads", "eager loop, images/s", "engine, images/s", "ratio",
    "spread", "rounds",
)  # fmt: skip


def _against_eager(result: Result) -> Sequence[str]:
    return (
        result["size"], f"{result['channels']}", f"{result['tokens']}", f"{result['batch']}", f"{result['threads']}",
        f"{median(result['eager']):,.1f}", f"{median(result['engine']):,.1f}", f"**{median(result['ratios']):.2f}**",
        f"{min(result['ratios']):.2f} to {max(result['ratios']):.2f}", f"{len(result['ratios'])}",
    )  # fmt: skip


def _profile(results: Mapping[str, Result]) -> str:
    return "\n".join(_profile_of(result) for result in _by_size(results))


def _profile_of(result: Result) -> str:
    rates = f"{result['matmul_flops_per_second'] / 1e9:,.0f} GFLOP/s, {result['copy_bytes_per_second'] / 1e9:,.1f} GB/s"
    shape = f"batch {result['batch']} of {result['tokens']} tokens, {_threads(result['threads'])}"
    title = f"{result['size']}, {shape} (measured peaks: {rates}):\n\n"
    rows = [
        (group, *(text for way in ("eager", "engine") for text in _prediction(result[way][group])))
        for group in (*GROUPS, OUTSIDE)
    ]
    sums = ((sum(group[kind] for group in result[way].values()) * 1e3) for way in ("eager", "engine") for kind in KINDS)
    rows.append(("**whole step**", *(f"{milliseconds:,.1f}" for milliseconds in sums)))
    heads = ("milliseconds a step", "eager, predicted", "eager, measured", "engine, predicted", "engine, measured")
    return title + _table(heads, rows)


KINDS = ("predicted", "measured")


def _prediction(group: Mapping[str, float]) -> tuple[str, str]:
    predicted, measured = (f"{group[kind] * 1e3:,.1f}" for kind in KINDS)
    return predicted if group["predicted"] else "", measured


def _cost_law(results: Mapping[str, Result]) -> str:
    rows = []
    for result in _in_order(results):
        points, axis = result["points"], result["axis"]
        x = [point["x"][axis] for point in points]
        for measured, expected, _ in MEASURES:
            if points[0][measured] is not None:
                y, theory = ([point[name] for point in points] for name in (measured, expected))
                rows.append(
                    (
                        AXIS_TITLES[axis], f"{min(x):,.0f} to {max(x):,.0f}", measured.replace("_per_", "/").replace("_", " "),
                        f"{slope(x, y):+.2f}", f"{slope(x, theory):+.2f}",
                        f"{median(a / b for a, b in zip(y, theory, strict=True)):.2f}",
                    )
                )  # fmt: skip
    return _table(("against", "range", "what", "slope", "expected slope", "measured / expected"), rows)


def _sweep(results: Mapping[str, Result]) -> str:
    (result,) = results.values()
    by_clock = result["one_worker"] / result["points"] - result["training"]
    rows = (
        ("`make up` until all servers answer", f"{result['ready']:.0f} s"),
        ("until the worker has made its deployments, too", f"{result['serving']:.0f} s"),
        ("memory of all processes (proportional set size)", f"{result['memory'] / 1e9:.2f} GB"),
        (f"{result['points']} points, one worker", f"{result['one_worker']:.0f} s"),
        (f"{result['points']} points, two workers", f"{result['two_workers']:.0f} s"),
        ("speed-up", f"**{result['one_worker'] / result['two_workers']:.2f}**"),
        ("a point, median: training", f"{result['training']:.1f} s"),
        ("a point, median: all else, from the start of its flow", f"{result['overhead']:.1f} s"),
        ("a point, mean: all else, with one worker by the clock", f"{by_clock:.1f} s"),
        ("the finished sweep again", f"{result['again']:.1f} s"),
    )
    return _table(("what", ""), rows)


def _waiting(results: Mapping[str, Result]) -> str:
    (result,) = results.values()
    rows = (
        (f"a point whose training sleeps {result['sleeping']:.0f} s, one worker", f"{result['alone']:.0f} s"),
        (f"the same, {result['workers']} workers in clones of their own, by the clock", f"{result['together']:.1f} s"),
        ("ratio", f"**{result['alone'] / result['together']:.2f}**"),
    )
    return _table(("what", ""), rows)


def _point(results: Mapping[str, Result]) -> str:
    (result,) = results.values()
    now = {"processes": result["processes"], "python": result["python"], **result["requests"]}
    titles = ("processes that it starts", "of these Python", "requests to S3", "requests to MLflow", "requests to Prefect")
    rows = (
        (title, f"{before}", f"{now[name]}", f"{now[name] / before:.2f}")
        for title, (name, before) in zip(titles, ONCE.items(), strict=True)
    )
    return _table(("a point", "before", "now", "ratio"), rows)


def timeline_figure(result: Result) -> Figure:
    """Draw the processes of a point as bars over time, with the CPU seconds that each used; the rest it waited."""
    shown = [process for process in result["timeline"] if process["last"] - process["first"] > SHOWN_SECONDS]
    figure = Figure(figsize=(11, 0.34 * len(shown) + 0.9), layout="constrained")
    axes = figure.subplots()
    for row, process in enumerate(shown):
        length = process["last"] - process["first"]
        axes.barh(row, length, left=process["first"], color=RULE)
        axes.barh(row + 0.32, min(process["cpu"], length), left=process["first"], color=MUTED, height=0.16)
        words = f" {process['title']}: {length:.1f} s, CPU {process['cpu']:.1f} s"
        axes.text(process["first"], row - 0.08, words, va="center", fontsize=8.5, color=INK)
    axes.set(xlabel="seconds since the flow run was started", yticks=[])
    axes.invert_yaxis()
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def _large_sweeps(results: Mapping[str, Result]) -> str:
    (result,) = results.values()
    rows = (
        (f"a finished sweep of {result['finished_points']} points again", f"{result['finished']:.1f} s"),
        (f"a sweep of {result['points']:,} points, until its plan is shown", f"{result['planning']:.1f} s"),
        ("until its first 20 points wait for workers", f"{result['starting']:.1f} s"),
        ("memory of its own process", f"{result['planner'] / 1e6:.0f} MB"),
        ("memory that Prefect's server takes more", f"{result['server'] / 1e6:.0f} MB"),
        ("cancelled, until no run is left", f"{result['cancelling']:.1f} s"),
    )
    return _table(("what", ""), rows)


def _rates(results: Mapping[str, Result]) -> str:
    def rate(result: Result) -> str:
        return f"{result['per_second']:,.1f}" if "per_second" in result else ""

    rows = (
        (_label(name), rate(result), f"{result['seconds']:.3g}", f"{result['rounds']}", result.get("remark", ""))
        for name, result in results.items()
    )
    return _table(("what", "a second", "seconds a round", "rounds", ""), rows)


@dataclass(frozen=True)
class _Table:
    """A table, and the results that it is made of: those of a file of tests, whose names may have to begin in a certain way."""

    render: Callable[[Mapping[str, Result]], str]
    file: str
    begins: str = "test_"

    def of(self, results: Mapping[str, Result]) -> dict[str, Result]:
        return {name: found for name, found in results.items() if found["file"] == self.file and name.startswith(self.begins)}


TABLES = {
    "training": _Table(_training, "test_training.py", "test_engine"),
    "profile": _Table(_profile, "test_training.py", "test_where"),
    "compiled": _Table(_compiled, "test_training.py", "test_compiled"),
    "data": _Table(_rates, "test_data_loading.py"),
    "sampling": _Table(_rates, "test_sampling.py"),
    "metrics": _Table(_rates, "test_metrics.py"),
    "extraction": _Table(_rates, "test_extraction.py"),
    "repa-targets": _Table(_rates, "test_repa_targets.py"),
    "pipeline": _Table(_rates, "test_pipeline.py"),
    "sweep": _Table(_sweep, "test_sweep.py", "test_a_sweep"),
    "waiting": _Table(_waiting, "test_sweep.py", "test_workers"),
    "point": _Table(_point, "test_point.py"),
    "large-sweeps": _Table(_large_sweeps, "test_sweep.py", "test_large"),
    "cost-law": _Table(_cost_law, "test_cost_law.py"),
}


def _table(heads: Sequence[str], rows: Rows) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _measured_on(results: Mapping[str, Result], runs: Mapping[str, Result]) -> str:
    lines = [_facts(runs[run]) for run in dict.fromkeys(result["run"] for result in results.values())]
    return "".join(f"\n{line}\n" for line in dict.fromkeys(lines))


def _facts(facts: Result) -> str:
    gpu = f"{facts['gpu']}, " if facts["gpu"] else ""
    return (
        f"*Measured on {gpu}{facts['processor']}, {facts['cores']} cores, {_threads(facts['threads'])}, "
        f"{facts['memory_gib']} GiB; torch {facts['torch']}, commit {facts['commit']}, {facts['date']}; other programs kept "
        f"{facts['processors_busy_with_others']:.2f} cores busy.*"
    )


def _threads(count: int) -> str:
    return f"{count} thread" + ("s" if count > 1 else "")


def _label(name: str) -> str:
    words, _, parameters = name.removeprefix("test_").partition("[")
    return words.replace("_", " ") + (f" ({parameters.removesuffix(']')})" if parameters else "")


def _by_size(results: Mapping[str, Result]) -> list[Result]:
    sizes = ["tiny", "S", "B", "L", "XL", "XXL"]
    return sorted(results.values(), key=lambda result: (sizes.index(result["size"]), result.get("threads", 0)))


def _in_order(results: Mapping[str, Result]) -> list[dict[str, Any]]:
    ordered = sorted(results.values(), key=lambda result: list(AXIS_TITLES).index(result["axis"]))
    return [{**result, "points": [_with_expected_rate(point) for point in result["points"]]} for result in ordered]


def _with_expected_rate(point: Mapping[str, Any]) -> dict[str, Any]:
    return {**point, "expected_images_per_second": point["images_per_second"] * point["seconds"] / point["expected_seconds"]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Keep the results of a run and write tables and figure anew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("measured", type=Path, help="what pytest wrote with --benchmark-json")
    parser.add_argument("--page", type=Path, default=Path("docs/performance.md"))
    options = parser.parse_args(arguments)
    file = options.page.with_name("performance.json")
    kept = merge(json.loads(file.read_text()) if file.exists() else {}, json.loads(options.measured.read_text()))
    page = fill(options.page.read_text(), kept)
    write_json(file, kept)
    with atomic_path(options.page) as temporary:
        temporary.write_text(page)
    if law := TABLES["cost-law"].of(kept["results"]):
        _draw(cost_law_figure(law), options.page.with_name(FIGURE))
    for point in TABLES["point"].of(kept["results"]).values():
        _draw(timeline_figure(point), options.page.with_name(TIMELINE))


def _draw(figure: Figure, file: Path) -> None:
    with atomic_path(file) as temporary:
        save_figure(figure, temporary)


if __name__ == "__main__":
    main()
