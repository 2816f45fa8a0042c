from pathlib import Path

import pytest

from sfd_core.host.errors import DataError
from sfd_core.training.history import History, Record, read_history, write_empty_history


def record(step: int, **terms: float) -> Record:
    return Record(step, step * 8, step * 0.5, {"loss": 1.0 / step, **terms}, 0.3, 1e-3, 16.0)


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


def test_a_row_is_kept_up_to_the_step_and_nothing_beyond(tmp_path: Path) -> None:
    history = History(tmp_path / "history.csv")
    for step in (1, 10, 11):
        history.append(record(step))
    history.truncate(10)
    assert [row["step"] for row in read_history(history.path)] == [1, 10]
    history.truncate(9)
    assert [row["step"] for row in read_history(history.path)] == [1]


def test_truncation_leaves_no_file_without_a_row(tmp_path: Path) -> None:
    history = History(tmp_path / "history.csv")
    for step in (0, 5):
        history.truncate(step)
        assert list(tmp_path.iterdir()) == []
    history.append(record(1))
    history.truncate(0)
    assert list(tmp_path.iterdir()) == []


def test_every_value_of_a_record_is_in_its_column_and_comes_back(tmp_path: Path) -> None:
    history = History(tmp_path / "deep" / "history.csv")
    for step in (7, 8):
        history.append(Record(step, 8 * step, 3.5, {"loss": 0.25, "mse": 0.125}, 0.75, 1e-3, 16.0))
    history.close()
    header, *rows = history.path.read_text().splitlines()
    assert header == "step,images_seen,seconds,loss,mse,gradient_norm,learning_rate,images_per_second"
    assert rows == ["7,56,3.5,0.25,0.125,0.75,0.001,16.0", "8,64,3.5,0.25,0.125,0.75,0.001,16.0"]
    expected = [dict(zip(header.split(","), map(float, row.split(",")), strict=True)) for row in rows]
    assert [list(row.items()) for row in read_history(history.path)] == [list(row.items()) for row in expected]


def test_syncing_and_closing_force_the_rows_onto_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forced: list[int] = []
    monkeypatch.setattr("os.fsync", forced.append)
    history = History(tmp_path / "history.csv")
    history.sync()
    assert forced == []
    history.append(record(1))
    history.sync()
    history.close()
    assert len(forced) == 2
    history.close()
    assert len(forced) == 2


def test_the_curve_of_a_network_that_was_not_trained_here_is_empty(tmp_path: Path) -> None:
    write_empty_history(tmp_path / "history.csv")
    assert (tmp_path / "history.csv").read_text() == "step,images_seen,seconds,loss\n"
    assert read_history(tmp_path / "history.csv") == []
    with pytest.raises(DataError, match="no training curve"):
        read_history(tmp_path / "missing.csv")
