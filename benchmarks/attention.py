"""Which kernel computes attention fastest; `python -m benchmarks.attention [--device cuda] [--json]`.

Self- and cross-attention of eight images, forward, and forward with backward: on a GPU of Stable Diffusion 1.x at 512
px, at its three sizes, on a CPU of the miniature. "speedup" is of the fastest kernel over torch's own choice, forward,
all shapes of the first dtype together.
"""

from typing import Any

import torch

from benchmarks.on_device import arguments, show
from efface.models.attention import KERNELS, unsupported_reason
from efface.models.attention_timing import BATCH_SIZE, REPEATS, timings

DTYPES = {"cuda": (torch.bfloat16, torch.float16, torch.float32), "cpu": (torch.float32,)}
# Heads, tokens and width of a head; 77 tokens of the prompt.
SHAPES = {"cuda": ((8, 4096, 40), (8, 1024, 80), (8, 256, 160)), "cpu": ((4, 64, 16), (4, 16, 32))}
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


def speedup(rows: list[dict[str, Any]]) -> float | None:
    """Of the kernel that is fastest over all rows; None where torch's own choice is alone."""
    times = {name: [row["milliseconds"][name] for row in rows] for name in KERNELS if name != "sdpa"}
    whole = [
        sum(one["forward"] for one in found) for found in times.values() if all(isinstance(one, dict) for one in found)
    ]
    return sum(row["milliseconds"]["sdpa"]["forward"] for row in rows) / min(whole) if whole else None


def main() -> None:
    args = arguments(__doc__ or "", {}).parse_args()
    device, rows, lines = torch.device(args.device), [], []
    for dtype in DTYPES[args.device]:
        for heads, tokens, width in SHAPES[args.device]:
            for keys in (None, PROMPT):
                found = measure(device, dtype, (heads, tokens, width), keys)
                shape = {"heads": heads, "tokens": tokens, "width": width, "keys": keys or tokens}
                rows.append({"dtype": str(dtype).removeprefix("torch."), **shape, "milliseconds": found})
                lines.append(str(rows[-1]))
    first = [row for row in rows if row["dtype"] == rows[0]["dtype"]]
    measured = {"speedup": speedup(first), "images": BATCH_SIZE, "repeats": REPEATS, "shapes": rows}
    show("attention", args, device, measured, lines)


if __name__ == "__main__":
    main()
