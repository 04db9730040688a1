"""The miniature: a small world of pictures with a small Stable Diffusion that knows it, embedded as data.

`model/` is an ordinary diffusers folder and `judge/` an ordinary image classifier; nothing in the other packages
knows them by name. The code beside them rebuilds both from nothing: `python -m efface.miniature build`.
"""

from pathlib import Path

HERE = Path(__file__).resolve().parent
MODEL = HERE / "model"
JUDGE = HERE / "judge"
