"""Mutants of what is read and exported: bases, concepts, prompts, and the surroundings of a command."""

from benchmarks.mutant import Mutant

EXPORT, KINDS, LOADING = "models/export.py", "models/files/base_kinds.py", "models/loading.py"
FINGERPRINT, WINDOW = "models/fingerprint.py", "concepts/text_window.py"
T_EXPORT, T_KINDS, T_WHOLE, T_FINGERPRINT = (
    f"tests/models/test_{name}.py" for name in ("export", "base_kinds", "complete_components", "fingerprint")
)

BASE_MUTANTS = (
    # what is exported works elsewhere
    Mutant(
        "an export has no vocabulary for transformers 4",
        EXPORT,
        '    pipeline.tokenizer.backend_tokenizer.model.save(str(folder / "tokenizer"))\n',
        "",
        f"{T_EXPORT} -k transformers_4",
    ),
    Mutant(
        "an export names its text encoder as today's transformers does",
        EXPORT,
        '    _name_text_encoder_as_ever(folder / "text_encoder")\n',
        "",
        f"{T_EXPORT} -k 'transformers_4 or one_precision'",
    ),
    Mutant(
        "an export can be read by its owner alone",
        EXPORT,
        "    open_to_readers(folder)\n",
        "",
        f"{T_EXPORT} -k umask",
    ),
    Mutant(
        "an unknown scheduler is found out after the training",
        LOADING,
        '    check_scheduler(parts.configs["scheduler"], scheduler_config)\n',
        "",
        f"{T_KINDS} -k before_any_training",
    ),
    # a base is what its whole folder says
    Mutant(
        "a tensor that is missing comes up at random",
        LOADING,
        "    meant = matched(where, component, shapes, wanted)\n",
        "    meant = {name: name for name in shapes if name in wanted}\n",
        f"{T_WHOLE} -k 'missing or none_of_its_own or another_shape'",
    ),
    Mutant(
        "the configs are no part of a base's identity",
        FINGERPRINT,
        "    for component, file in parts.configs.items():\n",
        "    for component, file in {}.items():\n",
        f"{T_FINGERPRINT} -k another_setting",
    ),
    Mutant(
        "the tokenizer is no part of a base's identity",
        FINGERPRINT,
        "    for file in parts.tokenizer:\n",
        "    for file in ():\n",
        f"{T_FINGERPRINT} -k tokenizer",
    ),
    Mutant(
        "weights that were replaced keep their fingerprint",
        FINGERPRINT,
        "stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]",
        "stat.st_mtime_ns, 1, 1]",
        f"{T_FINGERPRINT} -k size_and_time",
    ),
    Mutant(
        "a model of velocities is trained on noise",
        "models/noise_predictor.py",
        '    if scheduler.config.prediction_type == "v_prediction":\n',
        "    if False:\n",
        "tests/train/test_ca.py -k velocities",
    ),
    Mutant(
        "an inpainting model is a base",
        KINDS,
        "    if isinstance(channels, int) and channels in TASKS:\n",
        "    if False:\n",
        f"{T_KINDS} -k 'by_its_configs or way_around'",
    ),
    Mutant(
        "a second text encoder is not seen",
        KINDS,
        '    if (folder / "text_encoder_2").is_dir():\n',
        "    if False:\n",
        f"{T_KINDS} -k second_text_encoder",
    ),
    Mutant(
        "a pipeline's index is not read",
        KINDS,
        '    if (folder / "model_index.json").is_file():\n',
        "    if False:\n",
        f"{T_KINDS} -k by_its_index",
    ),
    Mutant(
        "of weights and their averages the weights are taken",
        "models/files/single_file.py",
        "    if len(lacking) == len(weights):\n",
        "    if True:\n",
        "tests/models/test_single_file.py -k averages_are_taken",
    ),
    Mutant(
        "a number of numpy's counts as code",
        "models/files/weights_file.py",
        '    *("numpy.dtype", "numpy.ndarray"),\n',
        "",
        "tests/models/test_weights_file.py -k numpy_number",
    ),
    Mutant(
        "code in a checkpoint is run",
        "models/files/weights_file.py",
        'map_location="cpu", weights_only=True',
        'map_location="cpu", weights_only=False',
        "tests/models/test_single_file.py -k not_run",
    ),
    # concepts and prompts
    Mutant(
        "prompts that are cut are not named",
        WINDOW,
        "            if reading.length > window.size:\n",
        "            if False:\n",
        "tests/concepts/test_text_window.py",
    ),
    Mutant(
        "a concept may be its own anchor",
        "concepts/concept.py",
        "        if not own.isdisjoint(",
        "        if False and not own.isdisjoint(",
        "tests/concepts/test_concept_sets.py -k one_sentence",
    ),
    Mutant(
        "prompt files of the literature are not recognised",
        "concepts/published_formats.py",
        '    if "concept_name" in names:\n',
        "    if True:\n",
        "tests/concepts/test_prompt_sets.py -k literature",
    ),
    # surroundings
    Mutant(
        "without a home there is a traceback",
        FINGERPRINT,
        "    with suppress(UserError):\n        return local_path(",
        "    with suppress(ZeroDivisionError):\n        return local_path(",
        "tests/launch/test_home_folder.py -k without_a_cache",
    ),
    Mutant(
        "a Ray that is gone is waited for",
        "cluster/workers/ray_probe.py",
        "        if time.monotonic() + 1 > deadline:\n",
        "        if time.monotonic() > deadline + 30:\n",
        "tests/cluster/test_ray_session.py -k ray_that_is_gone",
    ),
    Mutant(
        "a diffusers is permitted that loads no base",
        "setup.py",
        '"diffusers>=0.40"',
        '"diffusers>=0.36"',
        "tests/test_wheel.py -k known_to_fail",
    ),
)
