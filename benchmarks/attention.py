"""Which kernel computes the attention of Stable Diffusion 1.x fastest, on a GPU; `python -m benchmarks.attention`.

Self- and cross-attention of a 512 px image at its three sizes, eight images, forward, and forward with backward.
Writes benchmarks/results/attention.json. It needs a GPU.
"""

import sys
from typing import Any

import torch

from benchmarks.record import write_result
from efface.models.attention import KERNELS, unsupported_reason
from efface.models.attention_timing import BATCH_SIZE, REPEATS, timings

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Heads, tokens and width of a head; 77 tokens of the prompt.
SHAPES = ((8, 4096, 40), (8, 1024, 80), (8, 256, 160))
PROMPT = 77


def measure(device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int], keys: int | None) -> dict[str, Any]:
    """Milliseconds of each kernel, or why it has none."""
    found: dict[str, Any] = {}
    for name, attend in KERNELS.items():
        reason = unsupported_reason(name, device, dtype)
        if reason:
            found[name] = reason
            continue
        try:
            forward, both = timings(attend, device, dtype, shape, keys)
            found[name] = {"forward": round(forward, 4), "forward_and_backward": round(both, 4)}
        except Exception as error:  # each library refuses in its own words
            found[name] = (str(error).strip() or type(error).__name__).splitlines()[0]
    return found


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("there is no GPU here, so there is nothing to be measured")
    device = torch.device("cuda")
    rows = []
    for dtype in DTYPES:
        for shape in SHAPES:
            for keys in (None, PROMPT):
                heads, tokens, width = shape
                found = measure(device, dtype, shape, keys)
                rows.append(
                    {
                        "dtype": str(dtype).removeprefix("torch."),
                        "heads": heads,
                        "tokens": tokens,
                        "width": width,
                        "keys": keys or tokens,
                        "milliseconds": found,
                    }
                )
                print(rows[-1])
    facts = {"device": torch.cuda.get_device_name(device), "images": BATCH_SIZE, "repeats": REPEATS}
    print(write_result("attention", {"shapes": rows}, **facts))


if __name__ == "__main__":
    main()
