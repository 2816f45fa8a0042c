from pathlib import Path

import pytest

from sfd_core.host.errors import DataError
from sfd_core.training.history import History, Record, read_history


def record(step: int, **terms: float) -> Record:
    return Record(step, step * 8, step * 0.5, {"loss": 1.0 / step, **terms}, 0.3, 1e-3, 16.0)


def test_rows_come_back_in_the_order_and_columns_they_were_written(tmp_path: Path) -> None:
    history = History(tmp_path / "history.csv")
    for step in (1, 2):
        history.append(record(step, mse=0.25))
    history.close()
    rows = read_history(history.path)
    assert list(rows[0]) == [
        "step", "images_seen", "seconds", "loss", "mse", "gradient_norm", "learning_rate", "images_per_second",
    ]  # fmt: skip
    assert [row["loss"] for row in rows] == [1.0, 0.5]


def test_a_row_is_readable_at_once(tmp_path: Path) -> None:
    history = History(tmp_path / "history.csv")
    history.append(record(1))
    assert len(read_history(history.path)) == 1
    history.close()


def test_truncation_drops_later_rows_and_a_row_that_was_cut_short(tmp_path: Path) -> None:
    history = History(tmp_path / "history.csv")
    for step in range(1, 6):
        history.append(record(step))
    history.close()
    with history.path.open("a") as file:
        file.write("2")
    history.truncate(3)
    history.append(record(4))
    history.close()
    assert [row["step"] for row in read_history(history.path)] == [1, 2, 3, 4]


def test_truncation_to_the_start_leaves_no_file(tmp_path: Path) -> None:
    history = History(tmp_path / "history.csv")
    history.append(record(1))
    history.truncate(0)
    assert not history.path.exists()


def test_other_terms_than_the_file_has_are_refused(tmp_path: Path) -> None:
    history = History(tmp_path / "history.csv")
    history.append(record(1))
    history.close()
    with pytest.raises(DataError, match="delete it and train again"):
        history.append(record(2, repa=0.1))


def test_a_file_that_is_no_curve_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "history.csv").write_text("step,loss\n1,much\n")
    with pytest.raises(DataError, match="no training curve"):
        read_history(tmp_path / "history.csv")
