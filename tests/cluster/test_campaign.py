"""Reading a campaign: what is silent has a default, and every fault is one sentence that says where it is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_campaign import UCE, campaign_dict, write_yaml

from efface.cluster.campaign.planner import plan_campaign
from efface.cluster.campaign.spec import Campaign, Evaluation, Resources, read_campaign
from efface.cluster.run import open_run
from efface.concepts.prompts import AXES
from efface.config_files import list_configs
from efface.errors import UserError
from efface.train.method import get_method

CampaignFile = Callable[..., Path]


def complaint(read: Callable[[], Any]) -> str:
    """The one sentence that `read` is refused with."""
    with pytest.raises(UserError) as output:
        read()
    sentence = str(output.value)
    assert "\n" not in sentence and "Traceback" not in sentence
    return sentence


def test_what_is_not_said_has_its_default(tmp_path: Path) -> None:
    file = write_yaml(tmp_path / "short.yaml", {"name": "short", "base": "b", "methods": [{"method": "uce"}]})
    read = read_campaign(file)
    assert (read.strategy, read.seeds, read.concepts.targets) == ("single", (0,), "all")
    assert read.evaluation == Evaluation() and read.resources == Resources()


def test_overrides_apply_to_the_file(campaign_file: CampaignFile) -> None:
    overrides = ["seeds=[3,4]", "evaluation.shard_size=9", "strategy=multi"]
    read = read_campaign(campaign_file(), overrides)
    assert (read.seeds, read.evaluation.shard_size, read.strategy) == ((3, 4), 9, "multi")
    assert read.evaluation.images_per_prompt == 2


def test_a_campaign_written_out_reads_back_as_itself(campaign: Callable[..., Campaign], tmp_path: Path) -> None:
    tricky = {"learning_rate": [1e-5, 0.1], "erase_from": ["yes", "1e-5", "a: b", None]}
    methods = [{"method": "esd", "config": tricky, "exclude": [{"erase_from": "yes", "learning_rate": 0.1}]}]
    written = campaign(methods=methods)
    assert read_campaign(open_run(written, tmp_path / "run").folder.campaign) == written


@pytest.mark.parametrize("name", list_configs("campaigns"))
def test_every_shipped_campaign_is_read(name: str) -> None:
    assert isinstance(read_campaign(name), Campaign)


EVALUATION = {"images_per_prompt": 2}

BAD_CAMPAIGNS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"stratgy": "multi"}, "unknown key 'stratgy', did you mean 'strategy'?"),
    "unknown nested key": (
        {"evaluation": {"image_per_prompt": 2}},
        "unknown key 'evaluation.image_per_prompt', did you mean 'images_per_prompt'?",
    ),
    "unknown key of a method": (
        {"methods": [{"method": "uce", "presett": "x"}]},
        "unknown key 'methods.0.presett', did you mean 'preset'?",
    ),
    "missing key": ({"methods": [{"preset": "x"}]}, "key 'methods.0.method' is missing"),
    "no methods": ({"methods": []}, "methods: "),
    "methods are names": ({"methods": ["uce"]}, "methods.0: "),
    "methods is one": ({"methods": {"method": "uce"}}, "methods: "),
    "name with a slash": ({"name": "a/b"}, "name: "),
    "name of dots": ({"name": ".."}, "name: "),
    "unknown strategy": ({"strategy": "both"}, "strategy: "),
    "seed is no number": ({"seeds": ["one"]}, "seeds.0: "),
    "seed is a fraction": ({"seeds": [0.5]}, "seeds.0: "),
    "no seeds": ({"seeds": []}, "seeds: "),
    "a seed twice": ({"seeds": [1, 1]}, "seeds: names 1 twice"),
    "NaN": ({"resources": {"gpus": float("nan")}}, "resources.gpus: "),
    "infinite": ({"resources": {"gpus": float("inf")}}, "resources.gpus: "),
    "negative": ({"resources": {"gpus": -1}}, "resources.gpus: "),
    "several": (
        {"resources": {"gpus": 8}},
        "resources.gpus: a worker has one GPU at most, not 8; for more to a job say",
    ),
    "a part of a GPU for each of a process group": (
        {"resources": {"gpus": 0.5, "processes": 2}},
        "resources: processes that train together need a GPU each, not 0.5",
    ),
    "no CPU": ({"resources": {"cpus": 0}}, "resources.cpus: "),
    "no images": ({"evaluation": {"images_per_prompt": 0}}, "evaluation.images_per_prompt: "),
    "shards too large": ({"evaluation": {"shard_size": 10**6}}, "evaluation.shard_size: "),
    "unknown axis": ({"evaluation": {"prompts_per_concept": {"indirct": 1}}}, "evaluation.prompts_per_concept"),
    "fewer than no prompts": (
        {"evaluation": {"prompts_per_concept": {"retain": -1}}},
        "evaluation.prompts_per_concept",
    ),
    "nothing asked": (
        {"evaluation": {"prompts_per_concept": dict.fromkeys(AXES, 0)}},
        "evaluation.prompts_per_concept",
    ),
    "unknown limit": (
        {"limits": {"job_second": 5}},
        "unknown key 'limits.job_second', did you mean 'job_seconds'?",
    ),
    "unknown key beside": ({"limit": {}}, "unknown key 'limit', did you mean 'limits'?"),
    "unknown resource": ({"resources": {"cpu": 1}}, "unknown key 'resources.cpu', did you mean 'cpus'?"),
    "no time": ({"limits": {"job_seconds": 0}}, "limits.job_seconds: "),
    "infinite time": ({"limits": {"shard_seconds": float("inf")}}, "limits.shard_seconds: "),
    "no steps between checkpoints": ({"limits": {"checkpoint_steps": 0}}, "limits.checkpoint_steps: "),
    "no processes": ({"resources": {"processes": 0}}, "resources.processes: "),
    "a strategy misspelt": ({"strategy": "continuall"}, "strategy: "),
    "targets is a word": ({"concepts": {"targets": "every"}}, "concepts.targets: "),
    "config is a list": ({"methods": [{"method": "uce", "config": [1]}]}, "methods.0.config: "),
}


@pytest.mark.parametrize("problem", BAD_CAMPAIGNS)
def test_a_fault_in_the_file_is_reported_with_file_and_key(problem: str, campaign_file: CampaignFile) -> None:
    changes, expected = BAD_CAMPAIGNS[problem]
    file = campaign_file(**changes)
    assert complaint(lambda: read_campaign(file)).startswith(f"{file}: {expected}")


@pytest.mark.parametrize("text", ["", "- a list", "name: [", "name: ${nothing}", "\xff\xfe", "just words"])
def test_a_file_that_is_no_mapping_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_bytes(text.encode("latin-1"))
    assert str(file) in complaint(lambda: read_campaign(file))


@pytest.mark.parametrize("override", ["seeds", "seeds=[1", "=3", "evaluation=3", "methods.0.method=uce"])
def test_a_bad_override_is_refused(override: str, campaign_file: CampaignFile) -> None:
    complaint(lambda: read_campaign(campaign_file(), [override]))


@pytest.mark.parametrize("name", ["no-such-campaign", "x" * 300, "demo\0"])
def test_an_unknown_campaign_is_refused(name: str) -> None:
    assert complaint(lambda: read_campaign(name)).startswith("unknown campaign")


UNPLANNABLE: dict[str, tuple[dict[str, Any], str]] = {
    "base": ({"base": "miniatur"}, "unknown base 'miniatur': did you mean 'miniature'?"),
    "method": (
        {"methods": [{"method": "ucee"}]},
        "campaign 'tiny', method 'ucee': unknown method 'ucee': did you mean 'uce'?",
    ),
    "preset": (
        {"methods": [{"method": "uce", "preset": "huge"}]},
        "campaign 'tiny', method 'uce': unknown preset 'huge' of method 'uce'",
    ),
    "concept": (
        {"concepts": {"targets": ["catt"]}},
        "campaign 'tiny', concepts.targets: unknown concept 'catt' in concept set tiny: did you mean 'cat'?",
    ),
    "concept set": (
        {"concepts": {"set": "genmu-2052"}},
        "unknown concept set 'genmu-2052': did you mean 'genmu-2025'?",
    ),
    "prompt set": ({"evaluation": {"prompts": "miniatur"}}, "unknown prompt set 'miniatur': did you mean 'miniature'?"),
    "judge": ({"evaluation": {"judges": ["miniatur"]}}, "unknown judge 'miniatur': did you mean 'miniature'?"),
    "recipe": ({"evaluation": {"recipe": "miniatur"}}, "unknown recipe 'miniatur': did you mean 'miniature'?"),
    "no targets": ({"concepts": {"targets": []}}, "campaign 'tiny': concepts.targets is empty"),
    "a target twice": (
        {"concepts": {"targets": ["cat", "Cat"]}},
        "campaign 'tiny': concepts.targets names 'cat' twice",
    ),
    "a label of nothing": ({"methods": [{**UCE, "label": " "}]}, "campaign 'tiny', method 'uce': the label is empty"),
    "labels that share files": (
        {"methods": [{**UCE, "label": "x"}, {**UCE, "label": "X"}]},
        "campaign 'tiny': two methods are called 'x' and 'X', which share files",
    ),
    "a label twice": ({"methods": [UCE, UCE]}, "campaign 'tiny': two methods are called 'uce'"),
    "the base's label": ({"methods": [{**UCE, "label": "base"}]}, "campaign 'tiny': two methods are called 'base'"),
    "one job under two labels": (
        {"methods": [UCE, {**UCE, "label": "uce-2"}]},
        "'tiny': method 'uce-2' is the same job",
    ),
    "a field of a method": (
        {"methods": [{"method": "esd", "config": {"learning_rat": 1}}]},
        "campaign 'tiny', method 'esd': config of method 'esd': unknown key 'learning_rat', did you mean",
    ),
    "a swept field of a method": (
        {"methods": [{"method": "esd", "config": {"learning_rat": [1, 2]}}]},
        "campaign 'tiny', method 'esd': config of method 'esd': unknown key 'learning_rat', did you mean",
    ),
    "NaN in a method": (
        {"methods": [{"method": "esd", "config": {"learning_rate": float("nan")}}]},
        "campaign 'tiny', method 'esd': config of method 'esd': learning_rate: ",
    ),
    "a negative rate in a sweep": (
        {"methods": [{"method": "esd", "config": {"learning_rate": [1e-3, -1]}}]},
        "campaign 'tiny', method 'esd': config of method 'esd': learning_rate: ",
    ),
    "an empty sweep": (
        {"methods": [{"method": "esd", "config": {"learning_rate": []}}]},
        "campaign 'tiny', method 'esd': the sweep over 'learning_rate' has no values",
    ),
    "a setting of how jobs are run": (
        {"training": {"gradient_checkpointin": True}},
        "training: unknown key 'gradient_checkpointin', did you mean 'gradient_checkpointing'?",
    ),
    "a chain that must keep what it forgets": (
        {"strategy": "continual", "concepts": {"targets": ["cat", "dog"]}, "methods": [UCE]},
        "nothing is left to ask the model 'uce' on the axis adjacent of ",
    ),
    "a multi model that must keep what it forgets": (
        {"strategy": "multi", "concepts": {"targets": "all"}, "methods": [UCE]},
        "nothing is left to ask the model 'uce' on the axis ",
    ),
}


@pytest.mark.parametrize("problem", UNPLANNABLE)
def test_what_cannot_be_planned_is_reported_before_anything_is_loaded(
    problem: str, campaign_file: CampaignFile
) -> None:
    changes, expected = UNPLANNABLE[problem]
    assert complaint(lambda: plan_campaign(read_campaign(campaign_file(**changes)))).startswith(expected)


def test_a_judge_named_twice_is_refused(campaign_inputs: Path, campaign_file: CampaignFile) -> None:
    judge = str(campaign_inputs / "judge.yaml")
    file = campaign_file(evaluation={"judges": [judge, judge]})
    assert complaint(lambda: plan_campaign(read_campaign(file))).startswith(f"evaluation.judges names '{judge}' twice")


def test_a_strategy_the_method_does_not_know_is_refused(
    campaign_file: CampaignFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(get_method("uce"), "strategies", frozenset({"single"}))
    file = campaign_file(strategy="multi", methods=[UCE])
    said = complaint(lambda: plan_campaign(read_campaign(file)))
    assert said == "method 'uce' does not support the strategy 'multi', only single"


@pytest.mark.parametrize("key", ["recipe", "judge", "concepts", "prompts"])
def test_a_base_that_is_silent_leaves_the_campaign_to_say_it(key: str, campaign_inputs: Path, tmp_path: Path) -> None:
    import yaml

    base = yaml.safe_load((campaign_inputs / "base.yaml").read_text())
    del base[key]
    if key == "recipe":
        base[key] = ""
    file = write_yaml(tmp_path / "c.yaml", campaign_dict(campaign_inputs, base=write_yaml(tmp_path / "b.yaml", base)))
    field = {"concepts": "concepts.set", "judge": "evaluation.judges"}.get(key, f"evaluation.{key}")
    said = complaint(lambda: plan_campaign(read_campaign(file)))
    assert "base 'tiny' names no" in said and f"{field} must be given" in said
