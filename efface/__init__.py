"""efface makes a text-to-image diffusion model forget named concepts, and proves what it forgot and what it kept.

Its packages (`train`, `eval`, `models`, …) lie at the repository's root; this one links to them.
"""

__version__ = "0.1.0"
