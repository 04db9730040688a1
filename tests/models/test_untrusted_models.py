"""A folder of a stranger's model, refused before transformers reads it: code, pickles, bottomless JSON."""

import json
import re
import shutil
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from efface.config_files import CONFIGS
from efface.errors import UserError
from efface.eval.judging.judge_identity import judge_identity
from efface.eval.judging.judge_spec import load_judge
from efface.models.files import untrusted_models as model_files
from efface.models.files.untrusted_models import check_model_files
from efface.models.image_encoders import load_image_encoder

JUDGE = CONFIGS.parent / "miniature" / "judge"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The miniature's judge, a whole model."""
    shutil.copytree(JUDGE, tmp_path / "model")
    return tmp_path / "model"


def add(file: Path, **keys: Any) -> None:
    content = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**content, **keys}))


def refusal(folder: Path) -> str:
    """What is said of it, by the check and by a loader alike."""
    with pytest.raises(UserError) as caught:
        check_model_files(folder, "theirs")
    with pytest.raises(UserError) as loading:
        load_image_encoder(str(folder))
    assert str(loading.value).removeprefix(str(folder)) == str(caught.value).removeprefix("theirs")
    return str(caught.value)


def test_a_whole_model_is_fine(folder: Path) -> None:
    check_model_files(folder, "ours")
    load_image_encoder(str(folder))


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("config.json", "auto_map", {"AutoModel": "evil.Evil"}),
        ("config.json", "trust_remote_code", True),
        ("config.json", "_class_name", ["evil", "Evil"]),
        ("config.json", "vision_config", {"auto_map": {"AutoConfig": "evil.Evil"}}),
        ("config.json", "parts", [{"x": {"custom_pipeline": "them/evil"}}]),
        ("preprocessor_config.json", "auto_map", {"AutoImageProcessor": "evil.Evil"}),
        ("tokenizer_config.json", "auto_map", {"AutoTokenizer": ["evil.Evil", None]}),
        ("generation_config.json", "custom_generate", "them/evil"),
        ("config.json", "attn_implementation", "them/kernels"),
        ("config.json", "text_config", {"_attn_implementation": "them/kernels:fast"}),
    ],
)
def test_code_outside_transformers_is_never_run(folder: Path, file: str, key: str, value: Any) -> None:
    add(folder / file, **{key: value})
    message = refusal(folder)
    assert message.startswith(f"theirs: {file} names code of its own ('") and "never run" in message


def test_attention_by_a_name_of_transformers_is_no_code(folder: Path) -> None:
    add(folder / "config.json", attn_implementation="sdpa")
    check_model_files(folder, "ours")


def test_a_word_of_a_vocabulary_is_no_key(folder: Path) -> None:
    add(folder / "vocab.json", auto_map=7)
    check_model_files(folder, "ours")


def test_an_adapter_that_sends_to_another_model_is_refused(folder: Path) -> None:
    add(folder / "adapter_config.json", base_model_name_or_path="them/evil")
    assert "is an adapter of another model" in refusal(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt", "weights.pkl", "tf_model.h5"])
def test_weights_in_a_pickle_are_refused(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    assert f"has its weights in {name}, which could run code when read" in refusal(folder)


@pytest.mark.parametrize("part", ["pytorch_model.bin", "../other.safetensors", "/etc/x.safetensors", 3, ["a"]])
def test_an_index_finds_safetensors_beside_it_and_nothing_else(folder: Path, part: Any) -> None:
    add(folder / "model.safetensors.index.json", weight_map={"a": "model-1.safetensors", "b": part})
    assert f"model.safetensors.index.json finds weights in {part!r}" in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "vocab.json"])
def test_json_nested_without_end_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_text('{"a": ' * 100_000)
    assert f"{name} is nested too deeply" in refusal(folder)


def test_brackets_within_a_text_are_no_nesting(folder: Path) -> None:
    add(folder / "config.json", note="[" * 500 + '\\"' + "{" * 500)
    check_model_files(folder, "ours")


def test_a_config_of_gigabytes_is_not_read_into_memory(folder: Path) -> None:
    with (folder / "config.json").open("ab") as file:
        file.truncate(2**33)
    tracemalloc.start()
    assert "config.json cannot be read (has more than 8,388,608 bytes)" in refusal(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_quotes_without_end_take_no_long_time(folder: Path) -> None:
    (folder / "config.json").write_text('"' + '\\"' * 2**21)
    start = time.perf_counter()
    assert "config.json is not valid JSON" in refusal(folder)
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize("length", [0, 2**40, 2**63])
def test_a_header_larger_than_its_file_is_refused(folder: Path, length: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(struct.pack("<Q", length) + file.read_bytes()[8:])
    assert "model.safetensors is not a whole safetensors file" in refusal(folder)


def test_a_header_of_many_megabytes_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "VOCABULARY_BYTES", 100)
    assert "is not a whole safetensors file" in refusal(folder)


def test_a_file_is_no_folder(folder: Path) -> None:
    assert "is a file, should be the folder" in refusal(folder / "config.json")


@pytest.mark.parametrize(
    ("file", "keys", "said"),
    [
        ("config.json", {"depths": [100_000] * 4}, "has depths \\[100000, .* more than the .* tensors of the weights"),
        ("config.json", {"vision_config": {"num_hidden_layers": 10**6}}, "has num_hidden_layers 1000000, more than"),
        ("config.json", {"num_labels": 10**8}, "num_labels 100000000, should be a number up to"),
        ("config.json", {"id2label": ["cat"]}, "id2label that is no mapping of output numbers to labels"),
        ("config.json", {"id2label": {"a": "cat"}}, "id2label that is no mapping of output numbers to labels"),
        ("config.json", {"problem_type": "evil"}, "problem_type 'evil', should be one of regression, single"),
        ("config.json", {"model_type": 5}, "names no model_type"),
        (
            "preprocessor_config.json",
            {"size": {"height": 10**7, "width": 10**7}},
            "size height 10,000,000, should be 1 to",
        ),
        ("preprocessor_config.json", {"crop_size": 10**7}, "crop_size edge 10,000,000, should be"),
    ],
)
def test_a_config_says_no_more_than_the_weights_bear_out(
    folder: Path, file: str, keys: dict[str, Any], said: str
) -> None:
    add(folder / file, **keys)
    assert re.search(f"^theirs: {file} .*{said}", refusal(folder))


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("text", ["[1]", '"x"', "null"])
def test_a_config_is_a_mapping(folder: Path, file: str, text: str) -> None:
    (folder / file).write_text(text)
    assert f"{file} holds a " in refusal(folder)


def test_a_folder_without_a_model_is_no_judge_already_in_a_plan(folder: Path, tmp_path: Path) -> None:
    judge = tmp_path / "judge.yaml"
    judge.write_text(f"kind: classifier\nsource: {folder}\n")
    assert judge_identity(judge)
    for name, said in (("model.safetensors", "has no weights"), ("config.json", "has no config.json")):
        (folder / name).unlink()
        with pytest.raises(UserError, match=said):
            judge_identity(judge)


def test_weights_that_are_no_numbers_judge_nothing(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name, value in tensors.items() if value.is_floating_point() and value.ndim)
    (tmp_path / "judge.yaml").write_text(f"kind: classifier\nsource: {folder}\n")
    save_file({**tensors, name: tensors[name] * float("nan")}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"'{re.escape(name)}' holds numbers that are not finite"):
        load_judge(tmp_path / "judge.yaml")


def test_a_tensor_that_no_part_of_the_judge_reads_is_told(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = load_file(folder / "model.safetensors")
    (tmp_path / "judge.yaml").write_text(f"kind: classifier\nsource: {folder}\n")
    save_file(
        {**tensors, "extra": tensors[next(iter(tensors))].clone()}, folder / "model.safetensors", {"format": "pt"}
    )
    load_judge(tmp_path / "judge.yaml")
    assert "'extra' is no part of this model (1 tensors unused)" in caplog.text
