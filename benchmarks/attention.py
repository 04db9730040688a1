"""Which kernel computes attention fastest; `python -m benchmarks.attention [--device cuda] [--json]`.

Self- and cross-attention of eight images, forward, and forward with backward: on a GPU of Stable Diffusion 1.x at 512
px, at its three sizes, on a CPU of the miniature. "speedup" is of the fastest kernel over torch's own choice, forward,
all shapes of the first dtype together: 1 where that is the fastest, or alone. TFLOP/s are that kernel's, by the two
matrix products of an attention.
"""

from typing import Any

import torch

from benchmarks.on_device import arguments, matmul_tflops, show, use_line, use_of_device
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


def forward_seconds(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Of all rows together, by each kernel that computes them all."""
    times = {name: [row["milliseconds"][name] for row in rows] for name in KERNELS}
    whole = {name: found for name, found in times.items() if all(isinstance(one, dict) for one in found)}
    return {name: sum(one["forward"] for one in found) / 1000 for name, found in whole.items()}


def tflop(row: dict[str, Any]) -> float:
    """10^12 operations of a row's forward pass: queries by keys, and weights by values."""
    return 4 * BATCH_SIZE * row["heads"] * row["tokens"] * row["keys"] * row["width"] / 1e12


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
    taken = forward_seconds(first)
    fastest = min(taken, key=lambda name: taken[name])
    ceiling = matmul_tflops(device, DTYPES[args.device][0])
    used = use_of_device(sum(map(tflop, first)), taken[fastest], ceiling)
    lines.append(f"{fastest}: {use_line(used)}")
    measured = {
        "speedup": taken["sdpa"] / taken[fastest],
        "fastest": fastest,
        **used,
        "images": BATCH_SIZE,
        "repeats": REPEATS,
        "shapes": rows,
    }
    show("attention", args, device, measured, lines)


if __name__ == "__main__":
    main()
