"""Mutants of what commands write, and of what they refuse because it cannot have an effect."""

from benchmarks.mutant import Mutant

OUTPUT_FILES, UNLEARN, REQUEST = (
    "launch/arguments/output_files.py",
    "launch/commands/unlearn.py",
    "launch/arguments/job_request.py",
)
OPENING, TORCHRUN, FILES = "cluster/storage/opening.py", "train/torchrun.py", "efface/files.py"
T_OUT, T_NONE = "tests/launch/test_outputs.py", "tests/launch/commands/test_no_effect.py"

OUTPUT_MUTANTS = (
    # files of the user's own
    Mutant(
        "a command replaces its input",
        OUTPUT_FILES,
        "        if source and _real(path).is_relative_to(_real(local_path(source))):\n",
        "        if False:\n",
        f"{T_OUT} -k 'unlearn_replaces and yaml'",
    ),
    Mutant("a file is replaced without force", OUTPUT_FILES, "    if not force:\n", "    if False:\n", T_OUT),
    Mutant(
        "a link to nothing is replaced",
        FILES,
        "    return path.exists() or path.is_symlink()\n",
        "    return path.exists()\n",
        f"{T_OUT} -k 'unlearn_replaces and broken'",
    ),
    Mutant(
        "a device is replaced",
        OUTPUT_FILES,
        "        if path.exists() and not path.is_file():\n",
        "        if False:\n",
        f"{T_OUT} -k pipe",
    ),
    Mutant(
        "of two commands the later one wins",
        UNLEARN,
        "    delta.save(free)\n",
        "    delta.save(out)\n",
        f"{T_OUT} -k end_at_one_path",
    ),
    Mutant(
        "a URL becomes a folder",
        OUTPUT_FILES,
        "    if URL.match(text):\n",
        "    if False:\n",
        f"{T_OUT} -k a_url",
    ),
    Mutant(
        "~ is a folder's name",
        FILES,
        '    if not written.startswith("~"):\n',
        "    if True:\n",
        "tests/launch/test_home_folder.py -k of_a_chain",
    ),
    # a file for everything
    Mutant(
        "jobs share a file", REQUEST, "}-{self.job.id}.safetensors", "}.safetensors", f"{T_OUT} -k 'own or together'"
    ),
    Mutant(
        "prompt files of attacks share a name",
        "launch/commands/attack.py",
        'f"adversarial-{slug(spec.name)}-{id}.csv"',
        'f"adversarial-{slug(spec.name)}.csv"',
        f"{T_OUT} -k names_of_their_own",
    ),
    Mutant(
        "concepts share a sheet",
        FILES,
        'return plain if plain == re.sub("[ _-]", "-", name.casefold()) else',
        "return plain if True else",
        "tests/eval/test_contact_sheet.py -k look_alike",
    ),
    Mutant(
        "evaluations with other settings share a folder",
        "cluster/run.py",
        "sorted(model.id for model in plan.jobs), settings])",
        "sorted(model.id for model in plan.jobs)])",
        f"{T_OUT} -k other_settings",
    ),
    Mutant(
        "two judges share a name",
        "cluster/campaign/plan.py",
        "    if called.total() > len(called):\n",
        "    if False:\n",
        f"{T_OUT} -k two_judges",
    ),
    Mutant(
        "checkpoints of torchrun jobs share a file",
        UNLEARN,
        "{out.stem}-{request.job.id}.checkpoint",
        "{out.stem}.checkpoint",
        f"{T_OUT} -k checkpoints",
    ),
    Mutant(
        "metrics of a torchrun job replace its delta",
        TORCHRUN,
        "    if work.metrics == work.out:\n",
        "    if False:\n",
        f"{T_OUT} -k replace_each_other",
    ),
    Mutant(
        "metrics of a torchrun job replace a file of the user's",
        TORCHRUN,
        'return bool(json.loads(read_plain(path))["job_id"] == job.id)',
        "return True",
        f"{T_OUT} -k 'torchrun'",
    ),
    Mutant(
        "a run replaces files of a folder that is no run's",
        OPENING,
        "        if found:\n",
        "        if False:\n",
        f"{T_OUT} -k folder_of_no_run",
    ),
    Mutant(
        "a run goes on in the folder of another kind of run",
        OPENING,
        "    if other:\n",
        "    if False:\n",
        f"{T_OUT} -k results_of_a_campaign",
    ),
    Mutant(
        "a run goes on in the folder of another campaign",
        OPENING,
        "    if old != new and not _is_untouched(root):\n",
        "    if False:\n",
        "tests/cluster/test_run_folder.py",
    ),
    Mutant(
        "a run folder of another format is read",
        OPENING,
        '    if sign.get("format") != FORMAT:\n',
        "    if False:\n",
        "tests/cluster/test_repair.py",
    ),
    Mutant(
        "an export replaces a folder",
        "models/export.py",
        "    if exists:\n",
        "    if False:\n",
        "tests/launch/commands/test_bad_input.py tests/models/test_export.py -k 'export or folder'",
    ),
    # what cannot have an effect
    Mutant(
        "a delta that changes nothing is judged",
        "cluster/run.py",
        "        if not delta.has_effect(base):\n",
        "        if False:\n",
        f"{T_NONE} -k not_judged",
    ),
    Mutant(
        "a delta that changes nothing is exported",
        "models/export.py",
        "    if delta and not delta.has_effect(base):\n",
        "    if False:\n",
        f"{T_NONE} -k exported",
    ),
    Mutant(
        "a delta that changes nothing is continued",
        "train/continual.py",
        "    if not parent.has_effect(base):\n",
        "    if False:\n",
        f"{T_NONE} -k continued",
    ),
    Mutant(
        "a phrase is trained on that the text encoder does not read",
        "models/text/tokenizer.py",
        "    check_concepts(concepts, window)\n",
        "",
        f"{T_NONE} -k 'prompted_for and unlearn'",
    ),
    Mutant(
        "prompts are cut in silence",
        REQUEST,
        "    return check_texts(base, concept_set, prompts, {",
        "    return check_texts(base, concept_set, None, {",
        f"{T_NONE} -k cut",
    ),
    Mutant(
        "an evaluation that failed once fails for ever",
        "cluster/run.py",
        "        folder.clear_failure(model)\n",
        "        pass\n",
        f"{T_NONE} -k tried_again",
    ),
)
