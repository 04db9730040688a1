"""The study of a search: Optuna proposes configs (TPE), stops poor ones early, and keeps what came of each.

    study.jsonl    Optuna's journal, in the format of its `JournalFileBackend`: one operation a line

Every proposal has a random generator of its own, seeded by the search's seed and the trial's number: a search that was
killed and goes on proposes what it would have proposed.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import SuccessiveHalvingPruner
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import TrialState
from pydantic import TypeAdapter

from efface.cluster.search.result import STARTED, TrialResult, TrialRow
from efface.cluster.search.spec import Point, Search
from efface.files import content_id, storage_error, write_atomic
from efface.plain_files import read_plain

RESULT = "result"
"""The user attribute of a trial that holds its `TrialResult`."""

NOT_JUDGED = 0
"""The step at which a trial scores that was judged on no rung. Optuna ranks it below all that were."""

_RESULTS = TypeAdapter(TrialResult)


class Study:
    """The trials of a search, in the order they began. Each change is saved as a whole, or not at all."""

    def __init__(self, search: Search, path: Path) -> None:
        """Raises StorageError where the file `path` cannot be read."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._search = search
        self._journal = RunFolderJournal(path)
        self.damaged = self._journal.damaged
        """Whether the file was damaged: what follows the first damaged line is not known."""
        try:
            self._study = self._open()
            for trial in self.unfinished():
                self.point(trial)
            self.rows  # noqa: B018  # each is validated
        except Exception:  # whatever Optuna raises for operations that it never wrote
            self.damaged = True
            self._journal.clear()
            self._study = self._open()

    @property
    def rows(self) -> list[TrialRow]:
        return [
            TrialRow(
                number=trial.number + 1,
                id=content_id(trial.params),
                point=dict(trial.params),
                ended=trial.state.is_finished(),
                result=_RESULTS.validate_python(trial.user_attrs[RESULT]) if RESULT in trial.user_attrs else STARTED,
            )
            for trial in self._trials
        ]

    def is_complete(self, trials: int) -> bool:
        """Whether so many trials have ended, and no other is under way."""
        return len(self._trials) >= trials and all(trial.state.is_finished() for trial in self._trials)

    def __len__(self) -> int:
        return len(self._trials)

    def unfinished(self) -> list[optuna.Trial]:
        """The trials that an earlier start of the search left under way."""
        running = [trial for trial in self._trials if not trial.state.is_finished()]
        return [optuna.Trial(self._study, trial._trial_id) for trial in running]

    def ask(self) -> optuna.Trial:
        """A new trial, whose config is its `point`."""
        trial = self._study.ask()
        self.point(trial)
        self._journal.save()
        return trial

    def point(self, trial: optuna.Trial) -> Point:
        """The config of a trial."""
        seed = int(content_id([self._search.seed, trial.number]), 16) % 2**32
        # Trials under way count as poor ones, so that no two workers try the same.
        self._study.sampler = TPESampler(seed=seed, constant_liar=True)
        return {name: dimension.suggest(trial, name) for name, dimension in self._search.space.items()}

    def rung(self, trial: optuna.Trial) -> int:
        """The rung on which a trial is judged next, or again where it is not known that it may go on."""
        return max(0, len(self._trials[trial.number].intermediate_values) - 1)

    def judged(self, trial: optuna.Trial, rung: int, result: TrialResult) -> bool:
        """Keep what a trial scored on the images up to a rung (0, 1, …); whether it goes on to the next.

        It does while it is among the best ⌊n / reduction⌋, but at least 1, of the n trials that were judged on its rung
        so far (successive halving without waiting; Li et al., MLSys 2020, arXiv 1810.05934).
        """
        assert result.score is not None
        step = self._search.reduction**rung
        self._keep(trial, result)
        if step not in self._trials[trial.number].intermediate_values:
            trial.report(result.score, step)
        is_last = rung == len(self._search.rungs) - 1
        goes_on = not is_last and not trial.should_prune()
        if is_last:
            self._study.tell(trial, result.score)
        elif not goes_on:
            self._study.tell(trial, state=TrialState.PRUNED)
        self._journal.save()
        return goes_on

    def ended(self, trial: optuna.Trial, result: TrialResult) -> None:
        """Keep that a trial is over budget, or cannot be trained or judged."""
        assert result.score is not None
        self._keep(trial, result)
        if not self._trials[trial.number].intermediate_values:
            trial.report(result.score, NOT_JUDGED)
        self._study.tell(trial, state=TrialState.PRUNED)
        self._journal.save()

    def errored(self, trial: optuna.Trial, result: TrialResult) -> None:
        """Keep that a trial broke. It stays under way, for the next start to try it again."""
        self._keep(trial, result)
        self._journal.save()

    def row(self, trial: optuna.Trial) -> TrialRow:
        return self.rows[trial.number]

    def _keep(self, trial: optuna.Trial, result: TrialResult) -> None:
        trial.set_user_attr(RESULT, asdict(result))

    @property
    def _trials(self) -> list[optuna.trial.FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _open(self) -> optuna.Study:
        return optuna.create_study(
            storage=JournalStorage(self._journal),
            study_name=self._search.name,
            direction="maximize",
            load_if_exists=True,
            # Its resource is `step`, of which every rung has `reduction` times that of the one before.
            pruner=SuccessiveHalvingPruner(min_resource=1, reduction_factor=self._search.reduction),
        )


LARGEST = 2**28
"""Bytes of a study's journal."""


class RunFolderJournal(BaseJournalBackend):
    """Optuna's journal in a file that is replaced as a whole by `save`, on an object store too.

    So the operations between two saves are there together or not at all, however the process ends. It needs no lock:
    only the driver that holds the run's lease writes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            lines = read_plain(path, LARGEST).splitlines() if path.is_file() else []
        except OSError as error:
            raise storage_error(path, "read", error) from None
        self._operations = _intact(lines)
        self.damaged = len(self._operations) < len(lines)

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        return self._operations[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self._operations += (json.loads(json.dumps(log)) for log in logs)

    def save(self) -> None:
        """Raises StorageError."""
        lines = [json.dumps(operation, separators=(",", ":")) for operation in self._operations]
        write_atomic(self._path, "".join(f"{line}\n" for line in lines).encode())

    def clear(self) -> None:
        self._operations = []


def _intact(lines: list[bytes]) -> list[dict[str, Any]]:
    """The operations before the first line that is none."""
    operations = []
    for line in lines:
        try:
            operation = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(operation, dict):
            break
        operations.append(operation)
    return operations
