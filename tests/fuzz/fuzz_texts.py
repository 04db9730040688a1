"""Texts under fuzz: campaigns with their overrides, concept sets, prompt sets."""

import json
from pathlib import Path
from typing import Any

import yaml
from damage import SCALARS, WORDS, damaged_bytes, damaged_text, damaged_tree, trees
from hypothesis import strategies as st

from efface.cluster.campaign.spec import Campaign, read_campaign
from efface.concepts.concept import ConceptSet, load_concept_set
from efface.concepts.prompt_csv import read_prompt_csv, write_prompt_csv
from efface.config_files import CONFIGS, to_yaml
from efface.eval.judging.judge_identity import judge_identity
from efface.eval.judging.judge_spec import read_judge

CAMPAIGN = {
    "name": "demo",
    "base": "miniature",
    "strategy": "single",
    "concepts": {"set": "miniature", "targets": ["cat", "bus"]},
    "methods": [
        {"method": "uce", "preset": "miniature"},
        {
            "method": "esd",
            "label": "esd-x",
            "config": {"eta": [1.0, 2.0], "on_policy": True},
            "exclude": [{"eta": 1.0}],
        },
    ],
    "seeds": [0, 1],
    "evaluation": {"judges": ["miniature"], "prompts_per_concept": {"adjacent": 1}, "images_per_prompt": 4},
    "resources": {"cpus": 1, "gpus": 0.5},
}
CAMPAIGN_KEYS = (
    *Campaign.model_fields,
    *(
        "set",
        "targets",
        "method",
        "preset",
        "label",
        "config",
        "exclude",
        "prompts",
        "recipe",
        "judges",
        "cpus",
        "gpus",
    ),
)
CAMPAIGN_TEXTS = [yaml.safe_dump(CAMPAIGN), *(p.read_text() for p in sorted((CONFIGS / "campaigns").glob("*.yaml")))]


def dumped(tree: Any) -> str:
    return str(yaml.safe_dump(tree, allow_unicode=True))


OVERRIDE = st.one_of(
    st.builds("{}={}".format, st.sampled_from(CAMPAIGN_KEYS), st.sampled_from(WORDS) | SCALARS.map(json.dumps)),
    st.sampled_from(
        ("seeds=[3]", "methods=[{method: uce}]", "concepts.targets=all", "evaluation.judges=[a,b]", "x", "=", "")
    ),
    st.sampled_from(
        ("methods[0].method=esd", "methods.0.method=esd", "seeds.5=1", "name=${base}", "name.x=1", "name=${")
    ),
    damaged_text("evaluation.prompts_per_concept.adjacent=1"),
)


def check_campaign(drawn: tuple[str | bytes, list[str]], folder: Path) -> bool:
    """What is accepted is written to the run folder, and must be the same campaign when it is read from there."""
    content, overrides = drawn
    path = folder / "campaign.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode(errors="surrogatepass"))
    campaign = read_campaign(path, overrides)
    path.write_text(to_yaml(campaign.model_dump(mode="json")), encoding="utf-8")
    assert read_campaign(path) == campaign
    return True


campaigns = st.tuples(
    st.one_of(
        *(damaged_text(text) for text in CAMPAIGN_TEXTS),
        damaged_tree(CAMPAIGN, CAMPAIGN_KEYS).map(dumped),
        trees(CAMPAIGN_KEYS).map(dumped),
        damaged_bytes(CAMPAIGN_TEXTS[0].encode()),
    ),
    st.lists(OVERRIDE, max_size=2),
)

CONCEPTS = {
    "name": "pets",
    "version": 1,
    "concepts": [
        {
            "name": "Cat",
            "kind": "animal",
            "phrase": "a cat",
            "aliases": ["kitty"],
            "anchor": "a pet",
            "adjacent": ["Dog"],
        },
        {"name": "Van Gogh", "kind": "style", "phrase": "Van Gogh", "retained": ["Cat"]},
    ],
    "neighbours": [{"name": "Dog", "kind": "animal", "phrase": "a dog"}],
}
CONCEPT_KEYS = (
    "name",
    "version",
    "concepts",
    "neighbours",
    "kind",
    "phrase",
    "aliases",
    "anchor",
    "adjacent",
    "retained",
)
PETS = ConceptSet.model_validate(CONCEPTS)


def check_concepts(drawn: str | bytes, folder: Path) -> bool:
    """What is accepted has concepts that can be read."""
    path = folder / "concepts.yaml"
    path.write_bytes(drawn if isinstance(drawn, bytes) else drawn.encode(errors="surrogatepass"))
    concepts = load_concept_set(path)
    for concept in concepts.all:
        assert concepts.find(concept.name) == concept
        for alias in concept.aliases:
            assert concepts.find(alias) == concept
    for concept in concepts.concepts:
        concepts.adjacent_to(concept), concepts.retained_for(concept)
    return True


concept_sets = st.one_of(
    damaged_text(dumped(CONCEPTS)),
    damaged_tree(CONCEPTS, CONCEPT_KEYS).map(dumped),
    damaged_bytes(dumped(CONCEPTS).encode()),
)

JUDGES = (
    {"kind": "classifier", "source": "package:miniature/judge", "threshold": 0.5, "labels": {"tabby": "Cat"}},
    {"kind": "clip", "source": "openai/clip-vit-large-patch14", "present": "an image of {concept}", "batch_size": 4},
    {"kind": "vlm", "source": "llava-hf/llava-1.5-7b-hf", "question": "Is there {question}?", "dtype": "float16"},
)
JUDGE_KEYS = (*(key for judge in JUDGES for key in judge), "absent", "answer_tokens")


def check_judge(drawn: str | bytes, folder: Path) -> bool:
    """What is accepted has a model to be found, and an identity."""
    path = folder / "judge.yaml"
    path.write_bytes(drawn if isinstance(drawn, bytes) else drawn.encode(errors="surrogatepass"))
    spec = read_judge(path)
    assert spec.config.weights and spec.config.weights.source and spec.kind in {judge["kind"] for judge in JUDGES}
    assert judge_identity(path) == judge_identity(path)
    return True


judges = st.one_of(
    *(damaged_text(dumped(judge)) for judge in JUDGES),
    *(damaged_tree(judge, JUDGE_KEYS).map(dumped) for judge in JUDGES),
    trees(JUDGE_KEYS).map(dumped),
    damaged_bytes(dumped(JUDGES[0]).encode()),
)

PROMPTS = (
    "concept_type,concept_name,direct_prompt_1,direct_prompt_2,indirect_prompt,adversarial_prompt\r\n"
    'Animals,Cat,a cat,"a cat, asleep",it purrs,"c""t 🐦"\r\nStyle,van gogh,swirls by Van Gogh,,stars,\r\n'
    "x,dog,a dog,,,\r\n"
)
CELLS = st.one_of(
    st.sampled_from(("Cat", "kitty", "VAN  GOGH", "dog", "a cat", "x" * 2001, *WORDS)),
    st.text(max_size=10),
)


def _table(rows: list[list[str]]) -> str:
    return "\n".join(",".join(f'"{cell.replace(chr(34), chr(34) * 2)}"' for cell in row) for row in rows)


def check_prompts(drawn: str | bytes, folder: Path) -> bool:
    """What is accepted is the same when it is written and read again."""
    path = folder / "prompts.csv"
    path.write_bytes(drawn if isinstance(drawn, bytes) else drawn.encode(errors="surrogatepass"))
    rows = read_prompt_csv(path, PETS)
    path.write_bytes(write_prompt_csv(rows, PETS).encode())
    again = read_prompt_csv(path, PETS)
    assert {name: (row.direct, row.indirect, row.adversarial) for name, row in rows.items()} == {
        name: (row.direct, row.indirect, row.adversarial) for name, row in again.items()
    }
    return True


prompt_sets = st.one_of(
    damaged_text(PROMPTS),
    damaged_bytes(PROMPTS.encode()),
    st.lists(st.lists(CELLS, min_size=2, max_size=2), max_size=4).map(
        lambda rows: _table([["concept_name", "direct_prompt"], *rows])
    ),
    st.lists(st.lists(CELLS, max_size=4), max_size=4).map(_table),
)
