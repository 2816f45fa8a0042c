"""Which folder and variant a name means."""

from pathlib import Path

from sfd_core.workspace.places import find_place


def test_a_folder_may_have_an_at_sign_in_its_path(tmp_path: Path) -> None:
    folder = tmp_path / "anna@uni.example" / "project"
    folder.mkdir(parents=True)
    (folder / "params.yaml").touch()
    assert find_place(str(folder)) == (folder, None)
    assert find_place(f"{folder}@sfd") == (folder, "sfd")
