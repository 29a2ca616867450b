"""What a run has to do: the cells of each net, and how long they will take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from captum_learnprop.benchmark.cells import cell_path, missing_scores, read_cell
from captum_learnprop.benchmark.contenders import Contender
from captum_learnprop.benchmark.examination import wanted_of
from captum_learnprop.benchmark.forecast import NOTHING, CellWork, PassTimes, cell_work, time_passes
from captum_learnprop.benchmark.nets import Subject
from captum_learnprop.errors import LearnpropError

Rows = Sequence[tuple[Contender, int]]
"""Methods with their training seeds."""


@dataclass(frozen=True)
class Place:
    """A scene family of a net, and what is done there.

    Attributes:
        subject: The net.
        family: Name of the scenes.
        rows: The methods that fit the net, each with its training seed.
        scores: Names of the scores that are asked for.
    """

    subject: Subject
    family: str
    rows: Rows
    scores: Sequence[str]

    def work(self) -> list[CellWork]:
        """Returns what there is to do for each cell; what an earlier cell learns or measures counts there."""
        subject, found = self.subject, []
        learned: set[tuple[str, int]] = set()
        measured: set[int] = set()
        for contender, seed in self.rows:
            missing = self._missing(contender, seed)
            if not missing:
                found.append(NOTHING)
                continue
            training = None
            key = (contender.variant or "", seed)
            if contender.rules is not None and contender.variant is not None and key not in learned:
                learned.add(key)
                if not subject.rules_path(contender.variant, seed).is_file():
                    training = subject.settings.trainer(contender.variant, subject.net, seed).options
            known = seed in measured or any(subject.examples(seed)["examples_dir"].glob("*/*.safetensors"))
            found.append(cell_work(contender, subject, missing, training=training, measured=known))
            if training is not None:
                measured.add(seed)
        return found

    def times(self) -> PassTimes:
        """Returns what passes of the net take on this machine, measured now."""
        return time_passes(self.subject.model, self.subject.example)

    def _missing(self, contender: Contender, seed: int) -> list[str]:
        """Returns the scores that a cell lacks."""
        wanted = wanted_of(self.subject, self.scores)
        path = cell_path(self.subject.out, self.subject.name, self.family, contender, seed)
        try:
            kept = read_cell(path) if path.is_file() else None
        except LearnpropError:
            kept = None  # the run says what is wrong with it
        return missing_scores(kept, wanted, self.subject.judge_names())
