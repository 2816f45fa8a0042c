"""Kill a stage at random moments, start it again each time, and compare what comes of it with an unbroken run."""

import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from same_outputs import differences
from stage_runs import Run, StageServer, leftovers

LATEST_SECONDS = 0.002
"""A kill that is aimed at something comes so long after it began at most."""
RUNS_PER_KILL = 10
COUNTS = ("survived", "lost", "writing", "closing", "continued")


@dataclass(frozen=True)
class Span:
    """When an unbroken run worked, in seconds since its process began: from its first file until all was cleared up."""

    first_file: float
    end: float


@dataclass
class Tally:
    """What became of the kills of one stage."""

    name: str
    survived: int = 0
    lost: int = 0
    writing: int = 0
    """Kills after which a half-written checkpoint, piece or batch was left."""
    closing: int = 0
    """Kills after which the output was there, whole or in part."""
    continued: int = 0
    """Starts that told that they went on where a killed run stood."""
    troubles: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        return self.survived + self.lost

    def count(self, kills: int, wrong: list[str]) -> None:
        """Add kills after which the stage came to its end, and what was wrong with that."""
        if wrong:
            self.lost += kills
            self.troubles += [f"after {kills} kills:", *wrong]
        else:
            self.survived += kills

    def __str__(self) -> str:
        said = f"{self.name:<14}kills {self.kills}, survived {self.survived}, lost {self.lost}"
        if not (self.writing or self.closing):
            return said
        return (
            f"{said} ({self.writing} or {self.writing / self.kills:.0%} in the writing of a checkpoint, {self.closing} at the "
            f"output; {self.continued} starts went on with kept work)"
        )

    def __add__(self, other: "Tally") -> "Tally":
        counts = {name: getattr(self, name) + getattr(other, name) for name in COUNTS}
        return Tally("in all", **counts)


Aim = Callable[[Run, Span, random.Random], bool]
"""Waits for the moment to kill a run; returns False if the run ended before."""


def at_any_moment(run: Run, span: Span, chance: random.Random) -> bool:
    """Wait for a moment that is uniform over the time in which the stage works."""
    return run.wait(chance.uniform(span.first_file, span.end) - run.seconds) is None


def while_writing(run: Run, span: Span, chance: random.Random) -> bool:
    """Wait for the first checkpoint, piece or batch that is being written after such a moment."""
    return at_any_moment(run, span, chance) and run.wait_for(Run.writes) and shortly(chance)


def while_closing(run: Run, span: Span, chance: random.Random) -> bool:
    """Wait until the output is being written."""
    return run.wait_for(Run.closes) and shortly(chance)


def shortly(chance: random.Random) -> bool:
    """Wait for a moment too short to write much."""
    time.sleep(chance.uniform(0, LATEST_SECONDS))
    return True


AIMS: tuple[Aim, ...] = (*[at_any_moment] * 12, *[while_writing] * 5, *[while_closing] * 3)


def kill_again_and_again(
    server: StageServer, whole: Path, seed: int, continues: str = "", aims: tuple[Aim, ...] = AIMS
) -> Tally:
    """Kill runs of the server's stage, one for each of `aims`; every run that comes to its end is compared with `whole`.

    A run that was killed is started again in the same folder until one ends; a kill after all its work was done counts for
    nothing. Kills survived if the last run ends without an error, equal to `whole`, and leaves nothing behind; else all kills
    since the last comparison are lost. `continues` is what the stage prints when it goes on where a killed run stood.
    """
    stage, chance = server.stage, random.Random(f"{seed} {server.stage.name}")
    span, tally = unbroken(server, whole), Tally(stage.name)
    left, since, runs = chance.sample(aims, len(aims)), 0, 0
    while left or since:
        runs += 1
        assert runs < RUNS_PER_KILL * len(aims), f"{stage.name}: most of {runs} runs ended before they could be killed"
        run = server.start()
        killed = bool(left) and left[-1](run, span, chance) and run.kill()
        tally.continued += bool(continues) and continues in run.printed
        if killed and not run.done():
            left.pop()
            since += 1
            tally.writing += run.writes()
            tally.closing += run.closes()
            continue
        wrong = trouble(run, whole)
        assert since or not wrong, f"an unbroken run went wrong: {wrong}"
        tally.count(since, wrong)
        since = 0
        clear(run)
    return tally


def unbroken(server: StageServer, whole: Path) -> Span:
    """Return when a run of the server worked; it must be equal to `whole`, which the stage's real command wrote."""
    run = server.start()
    resume = run.project.path / run.stage.resume
    assert run.wait_for(lambda run: run.closes() or (resume.exists() and any(resume.rglob("*")))), run.printed
    first_file = run.seconds
    run.wait_for(Run.done)
    span = Span(first_file, run.seconds)
    assert not (wrong := trouble(run, whole)), wrong
    clear(run)
    return span


def trouble(run: Run, whole: Path) -> list[str]:
    """Wait for the end of a run and return what is wrong with its exit code, its output or what it left behind.

    A run that was killed when all was done need not have an exit code of its own.
    """
    stage, code = run.stage, run.wait()
    if code != 0 and not (code == -signal.SIGKILL and run.done()):
        return [f"{stage.name} {'did not end' if code is None else f'ended with code {code}'}:\n{run.printed}"]
    found = [f"{stage.name}: {path} is left" for path in leftovers(run.project, stage)]
    return found + differences(whole, run.project.path / stage.out, stage.times)


def clear(run: Run) -> None:
    """Delete the output of a run and the work it kept, for the next one to begin from nothing."""
    for folder in (run.stage.out, run.stage.resume):
        shutil.rmtree(run.project.path / folder, ignore_errors=True)
    for leftover in (run.project.path / run.stage.out).parent.glob(".*.partial"):
        shutil.rmtree(leftover)
