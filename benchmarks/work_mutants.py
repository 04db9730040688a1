"""Mutants of the work itself: tasks and their dispatch, training, and the registries."""

from benchmarks.mutant import Mutant

TASKS, TRAINING, DISPATCH = "cluster/tasks/metric.py", "cluster/tasks/training.py", "cluster/scheduler/dispatch.py"
QUEUE, LOOP, ENGINE = "cluster/scheduler/queue.py", "train/trainer/loop.py", "train/trainer/engine.py"
CHECKPOINT, CONTINUAL, RUN_JOB = "train/trainer/checkpoint.py", "train/continual.py", "train/run_job.py"
REGISTRY = "efface/registry.py"
T_OPEN, T_DISPATCH, T_QUEUE = (f"tests/cluster/test_{name}.py" for name in ("open_tasks", "dispatch", "queue"))
T_RUN, T_CHAINS = "tests/cluster/test_run_in_process.py", "tests/cluster/test_chains.py"
T_LOOP, T_CHECKPOINT, T_CONTINUAL, T_JOB = (
    f"tests/train/test_{name}.py" for name in ("loop", "checkpoint", "continual", "job")
)
T_REGISTRY = "tests/train/test_registry.py"

WORK_MUTANTS = (
    # tasks
    Mutant("a metric may be infinite", TASKS, "if not math.isfinite(number):", "if False:", f"{T_OPEN} -k not_finite"),
    Mutant(
        "a metric sees the model that was judged last in place of the base",
        TASKS,
        "        worker.set_resident(None)\n",
        "",
        f"{T_OPEN} -k find_it_unedited",
    ),
    Mutant(
        "a metric does not wait for its model",
        TASKS,
        "        return (self.model.folder, *self.judged_by[1:2])\n",
        "        return self.judged_by[1:2]\n",
        f"{T_OPEN} -k metric_waits",
    ),
    Mutant(
        "a shard is judged on the base",
        "cluster/tasks/judging.py",
        "        worker.set_resident(self.model)\n",
        "        worker.set_resident(None)\n",
        f"{T_RUN} -k 'those_of_the_base or other_images'",
    ),
    Mutant(
        "a training starts from the model that was judged last",
        TRAINING,
        "        worker.set_resident(None)\n",
        "",
        f"{T_OPEN} -k find_it_unedited",
    ),
    Mutant(
        "a training leaves no checkpoint",
        TRAINING,
        "            checkpoint=folder.checkpoint(model),\n",
        "",
        f"{T_CHAINS} -k inside_a_job",
    ),
    Mutant(
        "a finished training keeps its checkpoint",
        TRAINING,
        "        folder.checkpoint(model).unlink(missing_ok=True)\n",
        "",
        f"{T_CHAINS} -k inside_a_job",
    ),
    Mutant(
        "a task given up leaves the rest of its model queued",
        DISPATCH,
        "outcome.details)\n        self._queue.drop(task)\n",
        "outcome.details)\n",
        f"{T_DISPATCH} -k given_up",
    ),
    Mutant(
        "a second copy counts too",
        DISPATCH,
        "        if outcome.is_done or not others:\n",
        "        if not others:\n",
        "tests/cluster/test_limits.py -k straggling",
    ),
    Mutant(
        "shards do not wait for their model",
        QUEUE,
        "_Group(set(task.requires) - self._products)",
        "_Group(set())",
        T_QUEUE,
    ),
    Mutant(
        "a task that was done elsewhere is done again",
        "cluster/workers/worker.py",
        "            if self.folder.record(task):\n",
        "            if False:\n",
        f"{T_OPEN} -k out_of_reach",
    ),
    # training
    Mutant(
        "warm-up begins at the full rate",
        LOOP,
        "(step + (not warmup_from_zero)) / warmup_steps",
        "1.0",
        f"{T_LOOP} -k warms_up",
    ),
    Mutant(
        "batches of all steps are those of the first",
        LOOP,
        "    first = training.step * config.gradient_accumulation_steps\n",
        "    first = 0\n",
        f"{T_LOOP} -k accumulated",
    ),
    Mutant(
        "a resumed run keeps the weights of the base",
        LOOP,
        "                value.copy_(found.trained[name])\n",
        "                pass\n",
        f"{T_CHECKPOINT} -k bit_for_bit",
    ),
    Mutant(
        "a resumed run forgets the optimiser's moments",
        LOOP,
        "            engine.restore(found.moments, len(found.losses))\n",
        "            pass\n",
        f"{T_CHECKPOINT} -k bit_for_bit",
    ),
    Mutant(
        "a resumed optimiser counts from the first step",
        ENGINE,
        "torch.tensor(float(step)), **kept",
        "torch.tensor(0.0), **kept",
        f"{T_CHECKPOINT} -k bit_for_bit",
    ),
    Mutant(
        "a stopped run saves nothing",
        LOOP,
        "    if saved.path and (due or stop):\n",
        "    if saved.path and due:\n",
        T_CHECKPOINT,
    ),
    Mutant("nothing is clipped", ENGINE, "if self.config.max_grad_norm > 0:", "if False:", f"{T_LOOP} -k clipped"),
    Mutant(
        "weights that are not finite are a result",
        LOOP,
        "    if not all(bool(value.isfinite().all()) for value in tensors.values()):\n",
        "    if False:\n",
        f"{T_LOOP} -k infinite",
    ),
    Mutant(
        "another job's checkpoint is taken up",
        CHECKPOINT,
        'if header["key"] != key or header',
        "if header",
        f"{T_CHECKPOINT} -k another_job",
    ),
    Mutant(
        "a damaged checkpoint is taken up",
        CHECKPOINT,
        ' or header["sha256"] != _sha256(tensors, losses)',
        "",
        f"{T_CHECKPOINT} -k damaged",
    ),
    Mutant(
        "shared work comes back in the order of the processes",
        "train/collectives.py",
        "    return [parts[k % size][k // size] for k in range(len(items))]\n",
        "    return [item for part in parts for item in part]\n",
        "tests/train/test_collectives.py -k two_take_turns",
    ),
    Mutant(
        "random numbers do not depend on their purpose",
        "train/seeds.py",
        "json.dumps([seed, *purpose])",
        "json.dumps([seed])",
        "tests/train/test_seeds.py",
    ),
    Mutant(
        "images of an edited model are taken from the base's cache",
        "train/data/latents.py",
        "content_id([base.state_id, recipe.id",
        "content_id([base.fingerprint, recipe.id",
        f"{T_CONTINUAL} -k drawn",
    ),
    Mutant(
        "of two neighbours as near the later one comes first",
        "train/data/neighbours.py",
        "argsort(descending=True, stable=True)",
        "flip(0).argsort(descending=True, stable=True).neg().add(len(features) - 1)",
        "tests/train/test_neighbours.py -k tie",
    ),
    Mutant(
        "a request goes on from the base",
        RUN_JOB,
        "base.swap(None if method.anew else parent)",
        "base.swap(None)",
        f"{T_CONTINUAL} -k 'model_of_the_request_before and esd'",
    ),
    Mutant(
        "a chain forgets what it erased before",
        "train/edit_runner.py",
        "return stack(task.base, below, kind, tensors) if below is not None else (kind, tensors)",
        "return kind, tensors",
        f"{T_CONTINUAL} -k 'model_of_the_request_before and fade'",
    ),
    Mutant(
        "a job that changes nothing is a success",
        RUN_JOB,
        "    if not delta.has_effect(base, parent):\n",
        "    if False:\n",
        f"{T_JOB} -k changes_nothing",
    ),
    Mutant(
        "a job runs on another base",
        RUN_JOB,
        "    if job.base_id != base.fingerprint:\n",
        "    if False:\n",
        f"{T_JOB} -k does_not_fit",
    ),
    Mutant(
        "a concept is mapped to one that is erased",
        CONTINUAL,
        "referenced.name not in (*erased, concept.name)",
        "referenced.name != concept.name",
        f"{T_CONTINUAL} -k anchor",
    ),
    Mutant(
        "any delta will do for a parent",
        CONTINUAL,
        "    if made_by != job.parent:\n",
        "    if False:\n",
        f"{T_CONTINUAL} -k is_refused",
    ),
    # registries
    Mutant(
        "an entry point may register another name",
        REGISTRY,
        "        if entry.name not in self._items:\n",
        "        if False:\n",
        f"{T_REGISTRY} -k another_name",
    ),
    Mutant(
        "an entry point that fails ends in a traceback",
        REGISTRY,
        "        except Exception as error:\n",
        "        except ZeroDivisionError as error:\n",
        f"{T_REGISTRY} -k entry_point_that_fails",
    ),
    Mutant(
        "somebody else's package replaces a built-in item",
        REGISTRY,
        "            if name in self._built_in():\n",
        "            if name in self._built_in() and name not in self._entry_points():\n",
        f"{T_REGISTRY} -k built_in_name",
    ),
    Mutant(
        "names are listed without those of other packages",
        REGISTRY,
        "{*self._built_in(), *self._entry_points(), *self._items}",
        "{*self._built_in(), *self._items}",
        f"{T_REGISTRY} -k through_its_entry_point",
    ),
    Mutant(
        "a store of roll-outs is never made smaller while a job writes",
        "train/data/rollout_store.py",
        "            if self._unchecked >= self.most_bytes * UNCHECKED:",
        "            if False:",
        "tests/train/test_shared_rollouts.py -k bounded",
    ),
    Mutant(
        "an unknown name is answered without the nearest one",
        REGISTRY,
        "{did_you_mean(name, self.names())}",
        "none",
        f"{T_REGISTRY} -k nearest_known",
    ),
)
