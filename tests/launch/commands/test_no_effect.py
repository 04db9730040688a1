"""What changes nothing is no success: phrases that a text encoder does not read, and deltas with a relative L2 of 0."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command import RunEfface
from tiny_campaign import write_yaml

from efface.models.base import load_base
from efface.models.delta import Delta

LONG = "very " * 20 + "cat"  # the tiny base's tokenizer takes every byte for a token

WriteBase = Callable[..., str]


@pytest.fixture
def changed_base(campaign_inputs: Path, tmp_path: Path) -> WriteBase:
    """A function from changes of the cat to the tiny base with these concepts, as YAML."""

    def write(prompts: str | None = None, **cat: str) -> str:
        concepts = yaml.safe_load((campaign_inputs / "concepts.yaml").read_text())
        concepts["concepts"][0].update(cat)
        base = yaml.safe_load((campaign_inputs / "base.yaml").read_text())
        base["concepts"] = write_yaml(tmp_path / "concepts.yaml", concepts)
        if prompts:
            (tmp_path / "prompts.csv").write_text(prompts)
            base["prompts"] = str(tmp_path / "prompts.csv")
        return write_yaml(tmp_path / "base.yaml", base)

    return write


@pytest.mark.parametrize(
    ("cat", "sentence"),
    [
        ({"phrase": LONG}, "concept 'cat', phrase: a prompt with it has"),
        ({"anchor": LONG}, "concept 'cat', anchor: a prompt with it has"),
        ({"phrase": "<|endoftext|>"}, "concept 'cat', phrase: the tokenizer of base 'tiny' knows nothing in"),
        ({"anchor": "a<|startoftext|> cat"}, "concept 'cat' is its own anchor: to the text encoder of base 'tiny'"),
    ],
)
@pytest.mark.parametrize("command", ["unlearn", "torchrun", "attack"])
def test_a_phrase_that_cannot_be_prompted_for_is_refused_before_the_work(
    command: str, cat: dict[str, str], sentence: str, efface: RunEfface, changed_base: WriteBase, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = {
        "unlearn": ["unlearn", "uce", "-o", out],
        "torchrun": ["unlearn", "uce", "-o", out, "--torchrun-job", tmp_path / "work.json"],
        "attack": ["attack", "-o", out],
    }[command]
    result = efface(*arguments, "-c", "cat", "-b", changed_base(**cat))
    assert result.error_message.startswith(f"concept set tiny: {sentence}")
    assert not out.exists() and not (tmp_path / "work.json").exists()


HEADER = "concept_name,direct_prompt_1,direct_prompt_2,indirect_prompt,adversarial_prompt"


def test_prompts_of_the_concept_that_are_cut_are_named_before_the_work(
    efface: RunEfface, changed_base: WriteBase, tmp_path: Path
) -> None:
    base = changed_base(prompts=f"{HEADER}\ncat,a cat,{LONG},a pet,xat\ndog,a dog,{LONG} and dog,a pet,xog\n")
    result = efface("unlearn", "uce", "-c", "cat", "-b", base, "-o", tmp_path / "d.safetensors")
    assert result.code == 0
    assert "1 of 4 prompts are longer than the 75 tokens that the text encoder of base 'tiny' reads" in result.err
    assert "row 2, column direct_prompt_2" in result.err and "what asks for 'cat' stands behind them" in result.err


@pytest.fixture
def without_effect(base: str, finished: Path, tmp_path: Path) -> Path:
    """A delta of the job of `finished` that holds the base's own values."""
    (file,) = finished.glob("jobs/*/delta.safetensors")
    made, originals = Delta.load(file), load_base(base).originals()
    path = tmp_path / "same.safetensors"
    Delta("weights", {name: originals[name].clone() for name in made.tensors}, made.provenance).save(path)
    return path


def test_a_delta_that_changes_nothing_is_not_judged(
    efface: RunEfface, base: str, finished: Path, without_effect: Path, tmp_path: Path
) -> None:
    (good,) = finished.glob("jobs/*/delta.safetensors")
    for deltas in ([without_effect], [good, without_effect]):
        result = efface("evaluate", *deltas, "-b", base, "--workers", 0, "-o", tmp_path / "run")
        expected = f"{without_effect}: changes no weight of base 'tiny' (a relative L2 of 0), so nothing was forgotten"
        assert result.error_message == expected and not (tmp_path / "run").exists()


def test_nor_is_it_exported_or_continued(efface: RunEfface, base: str, without_effect: Path, tmp_path: Path) -> None:
    exported = efface("export", without_effect, tmp_path / "model", "-b", base)
    assert "changes no weight of base 'tiny'" in exported.error_message and not (tmp_path / "model").exists()
    after = ["--after", without_effect, "-o", tmp_path / "d.safetensors"]
    continued = efface("unlearn", "uce", "-c", "dog", "-b", base, *after)
    assert "changes no weight of the base (a relative L2 of 0)" in continued.error_message
    assert not (tmp_path / "d.safetensors").exists()


def test_an_adapter_that_adds_zero_and_a_hook_are_distinguished(base: str) -> None:
    loaded = load_base(base)
    name = next(name for name, value in loaded.originals().items() if name.endswith("to_k.weight"))
    module, (rows, columns) = name.removesuffix(".weight"), loaded.originals()[name].shape
    adapter: dict[str, Any] = {f"{module}.down": torch.ones(1, columns), f"{module}.alpha": torch.tensor(1.0)}
    provenance = {"base_id": loaded.fingerprint}
    assert not Delta("adapter", {**adapter, f"{module}.up": torch.zeros(rows, 1)}, provenance).has_effect(loaded)
    assert Delta("adapter", {**adapter, f"{module}.up": torch.ones(rows, 1)}, provenance).has_effect(loaded)
    assert Delta("hook", {}, provenance).has_effect(loaded)


def test_an_evaluation_whose_model_was_given_up_is_tried_again_by_the_same_command(
    efface: RunEfface, base: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (delta,) = finished.glob("jobs/*/delta.safetensors")
    evaluate = ["evaluate", delta, "-b", base, "--workers", 0, "-o", tmp_path / "run", "--images-per-prompt", 1]
    with monkeypatch.context() as patch:
        patch.setattr("efface.models.base.Base.swap", lambda *arguments, **more: 1 / 0)
        broken = efface(*evaluate)
    assert broken.code == 1 and f"`efface retry {tmp_path / 'run'}` tries them again" in broken.out
    assert efface(*evaluate).code == 0
