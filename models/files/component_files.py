"""The files that a base is made of: those that the loader reads and the fingerprint covers, and no others."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from efface.errors import UserError
from efface.models.files.base_kinds import (
    EXPORTED,
    FLAX,
    MERGE,
    check_configs,
    check_folder,
    check_tensors,
    check_tricks,
)
from efface.models.files.component_configs import CONFIGS, read_json
from efface.models.files.model_files import INDEX, SHARD, abbreviated
from efface.models.files.safetensors_headers import read_header

SINGLE_FILE = (".safetensors", ".ckpt")
WEIGHTS = {"text_encoder": "model", "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
"""What the weights of each component are called in a folder, without the ending."""
TOKENIZER = (
    "added_tokens.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)
"""All that a CLIP tokenizer is read from."""

LARGEST_OF_TOKENS = 2**24
"""Bytes of a file that lists tokens or tensors; CLIP's longest has a fifth of it."""


@dataclass(frozen=True)
class Parts:
    """What there is of a base, checked to be of a kind that efface edits."""

    configs: Mapping[str, Path]
    """The config of each component."""
    tokenizer: tuple[Path, ...]
    weights: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    """By component, whole or in shards; of a single file by "checkpoint"; none where they are drawn from a seed."""

    @property
    def single_file(self) -> Path | None:
        return self.weights["checkpoint"][0] if "checkpoint" in self.weights else None

    def files(self) -> Iterator[Path]:
        yield from self.configs.values()
        yield from self.tokenizer
        for files in self.weights.values():
            yield from files


def shape_parts(folder: Path) -> Parts:
    """The configs and the tokenizer in a folder. Raises UserError where one is missing or of another kind."""
    return Parts(config_files(folder), _tokenizer(folder / "tokenizer"))


def config_files(folder: Path) -> dict[str, Path]:
    """The config of each component, checked. Raises UserError as above."""
    files = {component: folder / component / name for component, name in CONFIGS.items()}
    check_configs({component: (file, read_json(file)) for component, file in files.items()})
    return files


def _tokenizer(folder: Path) -> tuple[Path, ...]:
    files = {name: folder / name for name in TOKENIZER if (folder / name).is_file()}
    if not {"vocab.json", "merges.txt"} <= files.keys() and "tokenizer.json" not in files:
        raise UserError(f"{folder}: holds no vocab.json and merges.txt, which a base needs")
    for file in files.values():
        if file.stat().st_size > LARGEST_OF_TOKENS:
            raise UserError(f"{file}: is larger than {LARGEST_OF_TOKENS >> 20} MiB, so it is not of a CLIP tokenizer")
    if "tokenizer_config.json" in files:
        check_tricks(files["tokenizer_config.json"], read_json(files["tokenizer_config.json"], LARGEST_OF_TOKENS))
    return tuple(files.values())


def folder_parts(folder: Path) -> Parts:
    """The parts of a diffusers folder. Raises UserError where one is missing, in doubt, or of another kind."""
    check_folder(folder)
    shapes = shape_parts(folder)
    weights = {component: _weights(folder / component, stem) for component, stem in WEIGHTS.items()}
    return Parts(shapes.configs, shapes.tokenizer, weights)


def file_parts(file: Path, architecture: Path) -> Parts:
    """The parts of a model in one file, shaped as the configs in a folder say. Raises UserError as above."""
    if file.suffix not in SINGLE_FILE:
        raise UserError(f"{file}: should be a .safetensors or .ckpt file, or a diffusers folder")
    if file.suffix == ".safetensors":
        check_tensors(file, {entry.name: entry.shape for entry in read_header(file)})
    shapes = shape_parts(architecture)
    return Parts(shapes.configs, shapes.tokenizer, {"checkpoint": (file,)})


def _weights(folder: Path, stem: str) -> tuple[Path, ...]:
    """A component's weights, whole or in shards; no variant such as fp16."""
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{folder}: there is an adapter beside the weights (adapter_config.json); {MERGE}, or take it away"
        )
    whole, index = folder / f"{stem}.safetensors", folder / f"{stem}{INDEX}"
    shards = sorted(
        path
        for path in folder.glob(f"{stem}-*.safetensors")
        if (part := SHARD.fullmatch(path.name)) and part[1] == stem
    )
    if whole.is_file():
        if index.is_file() or shards:
            beside = index if index.is_file() else shards[0]
            raise UserError(f"{folder}: which are the weights, {whole.name} or {beside.name} and its parts? Keep one")
        return (whole,)
    if shards:
        _check_complete(folder, stem, [path.name for path in shards])
        return tuple(shards)
    raise _no_weights(folder, whole)


def _check_complete(folder: Path, stem: str, shards: list[str]) -> None:
    """All parts of one and the same saving are there, and no others; what an index says too."""
    count = int(shards[-1].removesuffix(".safetensors")[-5:])
    wanted = [f"{stem}-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    index = folder / f"{stem}{INDEX}"
    if index.is_file():
        named = read_json(index, LARGEST_OF_TOKENS).get("weight_map")
        values = named.values() if isinstance(named, dict) else ()
        if {str(value) for value in values} != set(shards):
            raise UserError(f"{index}: names other files than the parts that lie beside it; save the model once more")
    if shards != wanted:
        odd = [*(name for name in wanted if name not in shards), *(name for name in shards if name not in wanted)]
        raise UserError(f"{folder}: the parts of the weights do not belong together, see {abbreviated(odd)}")


def _no_weights(folder: Path, whole: Path) -> UserError:
    """What is there instead, and what would help."""
    if not folder.is_dir():
        return UserError(f"{folder}: no such folder, which a base needs")
    endings = {path.suffix for path in folder.iterdir()}
    variants = sorted(path.name for path in folder.glob(f"{whole.stem}.*.safetensors"))
    if variants:
        return UserError(f"{folder}: holds only the variant {variants[0]}; rename it to {whole.name} to use that")
    if endings & {".msgpack"}:
        return UserError(f"{folder}: holds no {whole.name} but Flax weights, {FLAX}")
    if endings & {".onnx", ".onnx_data", ".xml", ".tflite", ".mlmodelc"}:
        return UserError(f"{folder}: holds no {whole.name} but an exported model, {EXPORTED}")
    if endings & {".bin", ".pt", ".pth", ".ckpt"}:
        return UserError(
            f"{folder}: holds no {whole.name} but a pickle, which could run code when read; if you trust it, load it "
            "with diffusers and save it with save_pretrained"
        )
    return UserError(f"{folder}: holds no {whole.name}, which a base needs")
