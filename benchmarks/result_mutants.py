"""Mutants of what is scored, reported, attacked, handed in and shown to others."""

from benchmarks.mutant import Mutant

QUERIES, PAGE, CONTENT = "eval/report/queries.py", "eval/report/page.py", "cluster/stored_tasks.py"
VERIFY, SCORES, FOREIGN = "cluster/package/verify.py", "cluster/method_scores.py", "models/foreign_weights.py"
LEARN, SOLVE = "eval/attacking/attack_training.py", "train/closed_form.py"
T_QUERIES, T_PAGE, T_CONTENT = (
    "tests/eval/test_report_queries.py",
    "tests/eval/test_report_page.py",
    "tests/cluster/test_run_content.py",
)
T_PACKAGE, T_FOREIGN = "tests/launch/commands/test_package.py", "tests/models/test_foreign_weights.py"
T_LEARN, T_SOLVE = "tests/eval/test_attack_training.py", "tests/train/test_closed_form.py"

RESULT_MUTANTS = (
    # scores
    Mutant(
        "a verdict whose score is no number counts",
        "eval/judging/verdicts.py",
        "verdict if np.isfinite(verdict.score) else UNREADABLE",
        "verdict",
        "tests/eval/test_image_errors.py tests/eval/test_evaluate.py -k 'number or whole'",
    ),
    Mutant(
        "methods that were asked other questions are compared",
        "eval/scores/comparison.py",
        " and scores[label].questions == scores[to].questions",
        "",
        "tests/eval/test_scoring.py -k compared",
    ),
    Mutant(
        "a chain is shown with all of its requests",
        SCORES,
        "for label, _ in chain[:-1]}",
        "for label, _ in chain[:0]}",
        "tests/cluster/test_chains.py tests/cluster/test_run_content.py -k 'leaderboard or chain'",
    ),
    Mutant(
        "a chain is scored beyond a gap",
        SCORES,
        "itertools.takewhile(",
        "filter(",
        f"{T_CONTENT} -k chain",
    ),
    # the report
    Mutant(
        "the report takes what is right for what costs score",
        QUERIES,
        "self.present == (axis in TARGET_AXES)",
        "self.present != (axis in TARGET_AXES)",
        f"{T_QUERIES} -k costs_score",
    ),
    Mutant(
        "a prompt ends the report's script",
        PAGE,
        '.replace("<", "\\\\u003c")',
        "",
        f"{T_PAGE} -k markup",
    ),
    Mutant(
        "a report does not check verdicts and images",
        CONTENT,
        "written and sha256(path) == written.sha256",
        "written",
        f"{T_CONTENT} -k damaged",
    ),
    Mutant(
        "another site may read the board",
        "launch/commands/board.py",
        'if self.headers.get("Host", "").rpartition(":")[0] not in (HOST, "localhost"):',
        "if False:",
        "tests/launch/test_board.py -k another_site",
    ),
    # packages
    Mutant(
        "a package leads out of its folder",
        VERIFY,
        "    if not path.is_relative_to(root.resolve()):\n",
        "    if False:\n",
        f"{T_PACKAGE} -k lead_out",
    ),
    Mutant(
        "files of a package are not compared",
        VERIFY,
        "if listed[name] != found.get(name)))",
        "if name not in found))",
        f"{T_PACKAGE} -k changed",
    ),
    Mutant(
        "any image of a package is the same",
        VERIFY,
        "return self.difference <= MAX_DIFFERENCE",
        "return True",
        f"{T_PACKAGE} -k does_not_make",
    ),
    Mutant(
        "an image of a package is exact whatever it is",
        VERIFY,
        "pixel_sha256(image) == model.sample.image_sha256",
        "True",
        f"{T_PACKAGE} -k last_bit",
    ),
    # other people's models
    Mutant(
        "weights that are the base's count as changed",
        FOREIGN,
        "if not torch.equal(value, originals[name].cpu()):",
        "if True:",
        T_FOREIGN,
    ),
    # attacks
    Mutant(
        "an attack learns the wrong way",
        "models/adversary.py",
        "self.step(torch.autograd.grad(loss, [self.value])[0])",
        "self.step(-torch.autograd.grad(loss, [self.value])[0])",
        T_LEARN,
    ),
    Mutant(
        "an attack that learns keeps its last state alone",
        LEARN,
        "if step * config.tests % config.steps < config.tests:",
        "if step == config.steps:",
        T_LEARN,
    ),
    Mutant(
        "a budget that ends takes what was learnt with it",
        LEARN,
        "        if not kept:\n            raise\n",
        "        raise\n",
        T_LEARN,
    ),
    Mutant(
        "a search takes an exchange that is worse",
        "eval/attacks/gcg.py",
        "if float(losses.min()) < best:",
        "if True:",
        "tests/eval/test_attack_draws.py -k worse",
    ),
    Mutant(
        "a search for prompts takes an exchange that is worse",
        "eval/attacks/token_search.py",
        "if float(similarities[winner]) > best:",
        "if True:",
        "tests/eval/test_token_search.py -k worse",
    ),
    Mutant(
        "static prompts are not tried where the direct prompt shows the concept",
        "eval/attacking/attack_run.py",
        'if (attack.kind == "static" or not pre) and not only_pre:',
        "if not pre and not only_pre:",
        "tests/eval/test_attack_run.py -k every_prompt",
    ),
    Mutant(
        "a search on the text encoder has no bound",
        "eval/attacking/encoder_budget.py",
        '        budget.spend(len(inputs[0] if inputs else named["input_ids"]))',
        "        pass",
        "tests/eval/test_attack_run.py -k what_a_search_found",
    ),
    # closed forms
    Mutant(
        "change costs nothing",
        SOLVE,
        "gram = key_key + ridge * torch.eye(len(key_key)",
        "gram = key_key + 0 * ridge * torch.eye(len(key_key)",
        T_SOLVE,
    ),
    Mutant(
        "a solve forgets what the weight makes of the keys",
        SOLVE,
        "residual = statistics.value_key - before @ key_key",
        "residual = statistics.value_key",
        T_SOLVE,
    ),
    Mutant(
        "a rotation may be a reflection",
        SOLVE,
        "        left[:, -1] *= -1\n",
        "        pass\n",
        "tests/fidelity/test_oce.py",
    ),
)
