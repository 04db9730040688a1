"""Mutants of what strangers' files are held to: plain files and limits, deltas, judges, bases, links."""

from benchmarks.mutant import Mutant

PLAIN, DELTA, CHECKS = "efface/plain_files.py", "models/delta.py", "models/delta_checks.py"
T_PLAIN, T_DELTA = "tests/test_plain_files.py", "tests/models/test_delta.py"
T_JUDGE, T_BASE = "tests/models/test_untrusted_models.py", "tests/models/test_base_kinds.py"

STRANGER_MUTANTS = (
    Mutant(
        "a device is read for ever",
        PLAIN,
        "    if not stat.S_ISREG(mode):\n",
        "    if False:\n",
        f"{T_PLAIN} -k limit",
    ),
    Mutant(
        "a file has no largest size",
        PLAIN,
        "    if too_large or len(data) > most:\n",
        "    if False:\n",
        f"{T_PLAIN} -k limit",
    ),
    Mutant(
        "a dead link hides a folder's files",
        "cluster/storage/records.py",
        "    except FileNotFoundError:\n        return None\n    except OSError:\n        if entry.is_symlink():\n",
        "    except OSError:\n        if False:\n",
        "tests/cluster/test_run_folder.py -k link_to_nothing",
    ),
    Mutant(
        "a link out of a folder is sent",
        "cluster/package/files_inside.py",
        "        if path.is_symlink() and leaves(path, root):\n",
        "        if False:\n",
        "tests/cluster/test_package_contents.py",
    ),
    Mutant(
        "an adapter is multiplied whatever its shape",
        DELTA,
        "        if not rank or list(down.shape)",
        "        if False and list(down.shape)",
        f"{T_DELTA} -k 'compared_with_its_layer and not huge'",
    ),
    Mutant(
        "an adapter may merge to infinity",
        DELTA,
        "        if not merged[name].isfinite().all():\n",
        "        if False:\n",
        f"{T_DELTA} -k infinity",
    ),
    Mutant(
        "a lineage may be anything",
        CHECKS,
        "isinstance(lineage, list) and lineage and all(map(_is_request, lineage))",
        "True",
        f"{T_DELTA} -k what_is_no_delta",
    ),
    Mutant(
        "a judge's config may ask for any number of layers",
        "models/files/untrusted_configs.py",
        "(_model_error(content) or _layers_error(content, tensors))",
        "_model_error(content)",
        f"{T_JUDGE} -k 'no_more_than and keys0'",
    ),
    Mutant(
        "a judge's weights may be no numbers",
        "eval/judging/judge_files.py",
        "        if not value.isfinite().all():\n",
        "        if False:\n",
        f"{T_JUDGE} -k no_numbers",
    ),
    Mutant(
        "a base's schedule is not tried",
        "models/noise_scheduler.py",
        "            _check_schedule(scheduler, config)\n",
        "",
        f"{T_BASE} -k no_library_can_build",
    ),
    Mutant(
        "a base's weights may be no numbers",
        "models/loading.py",
        "            if not parameter.sum().isfinite() and not parameter.isfinite().all():\n",
        "            if False:\n",
        f"{T_BASE} -k no_numbers",
    ),
)
