"""No command line ends in a traceback before its command runs: it is understood, or cyclopts says why not."""

from contextlib import suppress

from cyclopts import CycloptsError
from fuzzing import EXAMPLES, try_examples
from hypothesis import strategies as st

from sfd_core.cli.main import app

COMMANDS = [
    "sample",
    "evaluate",
    "measure",
    "guidance-curve",
    "path-curve",
    "solvers",
    "import",
    "experiment",
    "preset",
    "sweep-figure",
]
OPTIONS = [
    "--labels", "--count", "--columns", "--out", "--evaluations", "--seed", "--scales", "--intervals", "--offsets", "--samples",
    "--from", "--npz", "--png", "--texture-interval", "--texture-scale", "--guide-step", "--set", "--vary", "--table", "--over",
]  # fmt: skip
ODD = ["sfd", "0", "-1", "1e400", "nan", "0,1", "", "--", "-", "a=b", "\x00", "ü", "9" * 400]
WORDS = st.sampled_from([*OPTIONS, *ODD]) | st.text(max_size=6)


@EXAMPLES
def test_any_words_are_a_command_or_a_mistake(examples: int) -> None:
    def check(command: str, words: list[str]) -> None:
        with suppress(CycloptsError):
            app.parse_args([command, *words], print_error=False, exit_on_error=False)

    assert set(COMMANDS) <= set(app)
    try_examples(check, examples, st.sampled_from(COMMANDS), st.lists(WORDS, max_size=8))
