"""Killing a command again and again, and looking at what it leaves: every file whole, no work lost, the same end."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.outcome import differing, outcome
from tests.faults.points import Event, Kill
from tests.faults.processes import Ended, ask, run_driftkit
from tests.faults.targets import CHECKPOINT_EVERY, TARGETS, Target, make_inputs

MOST_RUNS = 12  # of one command in one sandbox, before it must have come to its end


@dataclass
class Tally:
    """What became of one target.

    Attributes:
        kills: processes that were killed, by the kind of moment.
        most_lost: steps that a killed training had logged beyond its last checkpoint, at most.
        ends: how often the command came to its end after kills, and was compared with the undisturbed one.
        problems: what was wrong, in words; empty where all is well.
    """

    target: str
    kills: dict[str, int] = field(default_factory=dict)
    most_lost: int = 0
    ends: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        return sum(self.kills.values())


class Campaign:
    """Kills commands in sandboxes below a folder.

    Args:
        tell: told of each kill in one line.
    """

    def __init__(self, folder: Path, *, seed: int = 0, tell: Callable[[str], None] = lambda line: None):
        self.folder, self.tell, self.random = folder.resolve(), tell, random.Random(seed)
        self.whole: dict[str, tuple[Path, Ended]] = {}
        make_inputs(self.folder / "inputs")

    def undisturbed(self, target: Target) -> tuple[Path, Ended]:
        """The sandbox in which a target came to its end without a kill, and how."""
        if target.name not in self.whole:
            sandbox = self._begin(target, "whole")
            ended = run_driftkit(target.words, sandbox)
            if ended.code:
                raise RuntimeError(f"{target.name} fails undisturbed: {ended.stderr}")
            self.whole[target.name] = sandbox, ended
        return self.whole[target.name]

    def kill(self, target: Target, count: int) -> Tally:
        """Kill a target `count` times, at moments of all kinds in turn; what is wrong is in the tally."""
        whole, ended = self.undisturbed(target)
        expected = ask(lambda: outcome(whole), whole)
        tally, moments = Tally(target.name), self._moments(ended)
        sandbox, runs = self._begin(target, "killed"), 0
        while True:
            kind, kill = next(moments) if tally.count < count and runs < MOST_RUNS else ("", None)
            died = run_driftkit(target.words, sandbox, kill)
            runs += 1
            if died.killed:
                tally.kills[kind] = tally.kills.get(kind, 0) + 1
                self.tell(f"{target.name}: killed {_words(kill)}")
                self._look(target, sandbox, tally, _words(kill))
            elif died.code:
                tally.problems.append(f"did not go on after kills: {died.stderr.strip()[-300:]}")
                return tally
            else:
                tally.ends += 1
                self._look(target, sandbox, tally, "at the end")
                tally.problems += [f"at the end {d}" for d in self._differing(sandbox, expected)]
                if tally.count >= count or tally.problems:
                    return tally
                sandbox, runs = self._begin(target, "killed"), 0

    def _differing(self, sandbox: Path, expected: dict[str, Any]) -> list[str]:
        return differing(ask(lambda: outcome(sandbox), sandbox), expected)

    def _begin(self, target: Target, name: str) -> Path:
        """A fresh sandbox with what the target finds."""
        sandbox = self.folder / name / target.name.replace(" ", "-").replace(":", "").replace(",", "")
        if sandbox.exists():
            shutil.rmtree(sandbox)
        sandbox.parent.mkdir(exist_ok=True)
        start = self.folder / "inputs"
        if target.start is not None:
            start, _ = self.undisturbed(next(t for t in TARGETS if t.name == target.start))
        shutil.copytree(start, sandbox, symlinks=True)
        for words in target.before:
            ended = run_driftkit(words, sandbox)
            if ended.code:
                raise RuntimeError(f"{' '.join(words)} fails undisturbed: {ended.stderr}")
        return sandbox

    def _moments(self, undisturbed: Ended) -> Iterator[tuple[str, Kill]]:
        """Moments without end: before a change to a file of each kind in turn, before any change, at any time."""
        kinds: dict[str, list[Event]] = {}
        for event in dict.fromkeys(undisturbed.events):
            kinds.setdefault(event.kind, []).append(event)
        while True:
            for kind in sorted(kinds):
                event = self.random.choice(kinds[kind])
                happens = undisturbed.events.count(event)
                yield f"{kind}", Kill(event, number=self.random.randint(1, min(happens, 4)))
            yield "any change", Kill(number=self.random.randint(1, len(undisturbed.events)))
            yield "any time", Kill(seconds=self.random.uniform(0.0, undisturbed.seconds))

    def _look(self, target: Target, sandbox: Path, tally: Tally, when: str) -> None:
        found = ask(lambda: _state(sandbox, target.runs), sandbox)
        tally.problems += [f"{when} {problem}" for problem in found["problems"]]
        tally.most_lost = max(tally.most_lost, found["lost"])
        if found["lost"] > 2 * CHECKPOINT_EVERY:  # training goes on while a checkpoint is written, at most to the next
            tally.problems.append(f"{when} {found['lost']} steps were lost")


def _words(kill: Kill | None) -> str:
    if kill is None:
        return "never"
    if kill.seconds is not None:
        return f"after {kill.seconds:.2f} s"
    event = f"{kill.event.kind} {kill.event.path}" if kill.event else "any change"
    return f"before {event} ({kill.number})"


def _state(sandbox: Path, runs: tuple[str, ...]) -> dict[str, Any]:
    """What `verify` says of everything in the sandbox, and the steps that would be lost."""
    from driftkit.stages.verify import verify
    from driftkit.storage.run_folder import Run

    found = verify([sandbox])
    lost = 0
    for name in runs:
        run = Run(sandbox / name)
        saved = max((c.step for c in run.checkpoints()), default=0)
        lost = max(lost, max((r["step"] for r in run.metrics()), default=0) - saved)
    return {"problems": [f"{p.path}: {p.problem}" for p in found.problems], "lost": lost}


def write_tallies(path: Path, tallies: list[Tally], seed: int) -> None:
    """The results as JSON."""
    rows = [{"target": t.target, "kills": t.kills, "ends": t.ends, "most_lost": t.most_lost, "problems": t.problems}
            for t in tallies]  # fmt: skip
    total = sum(t.count for t in tallies)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"seed": seed, "kills": total, "targets": rows}, indent=1) + "\n")
