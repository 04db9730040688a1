"""ESD: three iterations of `rohitgandikota/erasing`, esd_sd.py, from its command line.

Changed in the script: fp32 for bf16, 128 px for 1024, the tiny model, whose files are no safetensors variant. Of the
groups u and all only a part of the tensors is kept, and the names of all.
"""

import json
import random
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from tests.fidelity.recording.authors_checkout import Clone, Recorded, empty_module, record, replaced, run_script

CASES: dict[str, tuple[str, list[str], int]] = {
    "x": ("esd-x", [], 571),
    "from": ("esd-x", ["--erase_from", "a painting"], 2750),
    "u": ("esd-u", [], 571),
    "all": ("esd-all", [], 571),
}
"""Method, further arguments, and a seed of which the three stops come early."""
LARGE, KEPT_OF, KEPT_SIZE = ("u", "all"), 12, 1200


def make(clone: Clone, model: Path, work: Path) -> Recorded:
    changes = {
        "torch.bfloat16": "torch.float32",
        "height=width=1024": "height=width=128",
        "CompVis/stable-diffusion-v1-4": str(model),
        "torch_dtype=torch_dtype, use_safetensors=True": "torch_dtype=torch_dtype",
    }
    code = replaced(clone.source("esd_sd.py"), changes)
    utils: dict[str, Any] = {}
    exec(compile(clone.source("utils/sd_utils.py"), "sd_utils.py", "exec"), utils)
    empty_module("utils")
    empty_module("utils.sd_utils", **utils)
    tensors, facts = {}, {"commit": clone.commit()}
    for case, (method, more, seed) in CASES.items():
        found = _three_steps(code, ["--train_method", method, *more], seed, work / case)
        names = sorted(name.removeprefix("change/") for name in found if name.startswith("change/"))
        kept = names
        if case in LARGE:
            facts[f"{case}/names"] = json.dumps(names)
            kept = [name for name in names[::KEPT_OF] if found[f"change/{name}"].numel() <= KEPT_SIZE]
        changed = {f"change/{name}" for name in kept}
        tensors |= {f"{case}/{n}": v for n, v in found.items() if not n.startswith("change/") or n in changed}
    return tensors, facts


def _three_steps(code: str, arguments: list[str], seed: int, out: Path) -> dict[str, torch.Tensor]:
    random.seed(seed)
    drawn: list[int] = []
    really = random.randint

    def randint(low: int, high: int) -> int:
        drawn.append(really(low, high))
        return drawn[-1]

    random.randint = randint
    command = ["--erase_concept", "Van Gogh", "--iterations", "3", "--save_path", str(out), "--device", "cpu"]
    defined = run_script(code, "esd_sd.py", [*command, *arguments])
    random.randint = really
    (file,) = out.glob("*.safetensors")
    before = dict(defined["base_unet"].named_parameters())
    trained = safetensors.torch.load_file(file)
    stops, seeds = drawn[0::2], drawn[1::2]
    noise = [torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(each)) for each in seeds]
    return {
        **{f"change/unet.{name}": value - before[name].detach() for name, value in trained.items()},
        "losses": torch.tensor(defined["losses"]),
        "stops": torch.tensor(stops),
        "noise": torch.stack(noise),
    }


if __name__ == "__main__":
    record(make)
