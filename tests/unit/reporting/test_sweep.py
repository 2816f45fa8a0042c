from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from PIL import Image

from sfd_core.cli.main import app
from sfd_core.host.errors import DataError
from sfd_core.reporting.sources import read_table
from sfd_core.reporting.sweep import sweep_figure


def table(**columns: object) -> pd.DataFrame:
    return pd.DataFrame({"point": "p", "variant": "sfd", "seed": 0, "status": "computed", **columns})


def bars(figure: Figure) -> list[ErrorbarContainer]:
    return [container for container in figure.axes[0].containers if isinstance(container, ErrorbarContainer)]


def heights(bar: ErrorbarContainer) -> list[float]:
    return [float(np.ptp(segment[:, 1])) for segment in bar.lines[2][0].get_segments()]


def test_points_are_means_over_seeds_with_their_standard_deviation() -> None:
    values = {0.0: [5.0, 7.0, 9.0], 0.3: [4.0, 4.0, 7.0]}
    rows = [(offset, seed, value) for offset, found in values.items() for seed, value in enumerate(found)]
    offsets, seeds, numbers = zip(*rows, strict=True)
    figure = sweep_figure(table(delta_t=list(offsets), seed=list(seeds), fd_efficientnet_lite2=list(numbers)), ["delta_t"])
    (bar,) = bars(figure)
    assert list(bar.lines[0].get_xdata()) == [0.0, 0.3]
    assert list(bar.lines[0].get_ydata()) == pytest.approx([7.0, 5.0])
    assert heights(bar) == pytest.approx([2 * float(np.std(found, ddof=1)) for found in values.values()])


def test_the_lowest_mean_is_marked_not_the_luckiest_seed() -> None:
    rows = table(delta_t=[0.0, 0.0, 0.3, 0.3], seed=[0, 1, 0, 1], fd_efficientnet_lite2=[4.0, 9.0, 5.0, 6.0])
    (words,) = sweep_figure(rows, ["delta_t"]).axes[0].texts
    assert (words.get_text(), words.xy) == ("5.50", (0.3, 5.5))  # type: ignore[attr-defined]


def test_one_seed_has_no_bars_and_other_values_are_lines_of_their_own() -> None:
    figure = sweep_figure(
        table(delta_t=[0.0, 0.3] * 2, size=["tiny", "tiny", "S", "S"], fd_efficientnet_lite2=[4.0, 3.0, 2.0, 1.0]),
        ["delta_t", "size"],
    )
    assert [bar.has_yerr for bar in bars(figure)] == [False, False]
    assert [bar.get_label() for bar in bars(figure)] == ["sfd, size tiny", "sfd, size S"]


def test_sizes_stand_in_the_order_of_size() -> None:
    axes = sweep_figure(table(size=["B", "tiny", "S"], fd_efficientnet_lite2=[1.0, 2.0, 3.0]), ["size"]).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["tiny", "S", "B"]
    assert list(bars(axes.figure)[0].lines[0].get_ydata()) == [2.0, 3.0, 1.0]  # type: ignore[arg-type]


def test_a_swept_null_is_a_line_and_a_place_of_its_own(tmp_path: Path) -> None:
    rows = table(
        inner=[None, None, "{'block': 2}", "{'block': 2}"], delta_t=[None, 0.3, None, 0.3], fd_dinov2=[4.0, 3.0, 2.0, 1.0]
    )
    rows.to_csv(tmp_path / "table.csv")
    axes = sweep_figure(read_table(tmp_path / "table.csv", []), ["delta_t", "inner"]).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["null", "0.3"]
    lines = bars(axes.figure)  # type: ignore[arg-type]
    assert [line.get_label() for line in lines] == ["sfd, inner null", "sfd, inner {'block': 2}"]
    assert [list(line.lines[0].get_ydata()) for line in lines] == [[4.0, 3.0], [2.0, 1.0]]


def test_the_command_draws_a_table_and_says_what_a_table_lacks(tmp_path: Path) -> None:
    table(delta_t=[0.0, 0.3], fd_efficientnet_lite2=[2.0, 1.0]).to_csv(tmp_path / "table.csv")

    def draw(*options: str) -> None:
        app(["sweep-figure", str(tmp_path / "table.csv"), "--out", str(tmp_path / "figure.png"), *options])

    draw("--over", "delta_t")
    with Image.open(tmp_path / "figure.png") as picture:
        assert picture.width > 500
    with pytest.raises(DataError, match="lacks the columns size"):
        draw("--over", "size")
    (tmp_path / "table.csv").write_text("variant,seed\n")
    with pytest.raises(DataError, match="no distance"):
        draw()
