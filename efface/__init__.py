"""efface makes a text-to-image diffusion model forget named concepts, and proves what it forgot and what it kept.

Its packages (`train`, `eval`, `models`, …) lie at the repository's root; this one links to them.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

API = ("unlearn", "evaluate", "score", "load", "pipeline")
"""What Python finds here, from `launch/api.py`; nothing is imported before it is used."""

if TYPE_CHECKING:
    from efface.launch.api import evaluate, load, pipeline, score, unlearn

__all__ = ["evaluate", "load", "pipeline", "score", "unlearn"]


def __dir__() -> list[str]:
    return sorted({*API, "__version__"})


def __getattr__(name: str) -> Any:
    if name not in API:
        raise AttributeError(f"module 'efface' has no attribute '{name}'")
    # By its name, since an import would make every package depend on the command line.
    return getattr(importlib.import_module("efface.launch.api"), name)
