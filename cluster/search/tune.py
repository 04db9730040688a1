"""The search as Ray Tune runs it: Optuna proposes configs, ASHA stops those that do poorly on few images.

Tune keeps nothing of its own. What was tried is in the ledger, what came of it in the run folder; a search that goes on
after a kill has Tune try the known configs first, in their order, which the folder answers at once.
"""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optuna import logging as optuna_logging
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from efface.cluster.search.ledger import Ledger
from efface.cluster.search.spec import Search
from efface.cluster.search.trial import Trial
from efface.cluster.storage.run_folder import RunFolder
from efface.cluster.tasks.task import Outcome
from efface.cluster.workers.worker import Worker, WorkerContext
from efface.errors import Stopped, StorageError

MAX_ATTEMPTS = 2
"""How often a trial may break before it is given up."""

STOPPED = "laid down"

POLL_INTERVAL = 1.0
"""Seconds between two looks at whether to stop."""


class Trainable(tune.Trainable):
    """A candidate, judged on one rung more with every step; the worker stays from trial to trial."""

    def setup(self, config: dict[str, Any], search: Search | None = None, context: WorkerContext | None = None) -> None:
        assert search and context
        self._search, self._context = search, context
        self._worker: Worker | None = None
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._rung = 0
        self._trial = Trial(self._search, RunFolder(self._context.root), new_config)
        return True

    def step(self) -> dict[str, Any]:
        rung, last = self._rung, len(self._search.rungs) - 1
        self._rung += 1
        try:
            result = self._trial.judge(rung, self._run_task)
        except Stopped:
            result = {"state": STOPPED, "score": 0.0}
        # ASHA decides where its resource is a power of the reduction factor: so it decides on every rung.
        result["resource"] = self._search.reduction**rung
        return {**result, "done": result["state"] != "judged" or rung == last}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: all is in the run folder."""

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Nothing."""

    def _run_task(self, task: Any) -> Outcome:
        self._worker = self._worker or Worker(self._context)
        return self._worker.run(task)


class _Unsaved:
    """Tune saves what it is given, to restore a search from. These are of use only in the process that made them."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class LedgerCallback(_Unsaved, tune.Callback):
    """Tells the ledger what Tune hears; nothing of trials that end because the search is laid down."""

    def __init__(self, ledger: Ledger, should_stop: Callable[[], bool]) -> None:
        self._ledger, self._should_stop = ledger, should_stop

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._ledger.started(trial.trial_id, dict(trial.config))

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        if result["state"] != STOPPED:
            self._ledger.judged(trial.trial_id, result)

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        if not self._should_stop():
            self._ledger.ended(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        error = Path(trial.error_file).read_text(errors="replace").strip() if trial.error_file else "no reason is known"
        self._ledger.errored(trial.trial_id, error.splitlines()[-1])


class StopOnRequest(_Unsaved, tune.Stopper):
    """Ends the search when it is asked to, or when its folder is lost."""

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self._should_stop = should_stop
        self._stopped = False
        self._last_poll = -POLL_INTERVAL

    def requested(self) -> bool:
        try:
            return self._should_stop()
        except StorageError:  # the caller of `run_tune` asks again, and hears it
            return True

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        if not self._stopped and time.monotonic() - self._last_poll >= POLL_INTERVAL:
            self._last_poll = time.monotonic()
            self._stopped = self.requested()
        return self._stopped


def run_tune(
    search: Search,
    context: WorkerContext,
    trials: int,
    workers: int,
    ledger: Ledger,
    scratch: str,
    should_stop: Callable[[], bool],
) -> None:
    """Try configs until there are `trials` in the ledger or `should_stop()`; at most `workers` at a time, on the Ray
    that runs."""
    os.environ.update(TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1", TUNE_DISABLE_SIGINT_HANDLER="1", RAY_AIR_NEW_OUTPUT="0")
    optuna_logging.set_verbosity(optuna_logging.WARNING)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the ledger tells of broken trials in a line
    known, stopper = ledger.points, StopOnRequest(should_stop)
    optuna = OptunaSearch(
        {name: dimension.distribution() for name, dimension in search.space.items()},
        metric="score",
        mode="max",
        points_to_evaluate=known,
        # Else a search that goes on would draw again what it drew first.
        seed=search.seed * 1_000_003 + len(known),
    )
    asha = ASHAScheduler(
        time_attr="resource",
        metric="score",
        mode="max",
        grace_period=1,
        reduction_factor=search.reduction,
        max_t=search.reduction ** (len(search.rungs) - 1),
    )
    resources = {"cpu": search.resources.cpus, "gpu": search.resources.gpus}
    tune.Tuner(
        tune.with_resources(tune.with_parameters(Trainable, search=search, context=context), resources),
        tune_config=tune.TuneConfig(
            search_alg=optuna,
            scheduler=asha,
            num_samples=max(trials, len(known)),
            max_concurrent_trials=workers,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=search.name,
            storage_path=scratch,
            failure_config=tune.FailureConfig(max_failures=MAX_ATTEMPTS - 1),
            callbacks=[LedgerCallback(ledger, stopper.requested)],
            stop=stopper,
            verbose=0,
        ),
    ).fit()
