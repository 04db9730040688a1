"""efface makes a text-to-image diffusion model forget named concepts, and proves what it forgot and what it kept.

The rooms of the house (`train`, `eval`, `models`, …) stand at the repository's root; this package links to them.
"""

__version__ = "0.1.0"
