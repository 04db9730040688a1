"""PEZ on the edited model alone: P4D's search (`p4d.py`) towards the noise itself, in place of the base's prediction.

Hard Prompts Made Easy (Wen et al., NeurIPS 2023, arXiv 2302.03668), with the diffusion loss of its section 4.2: of an
image x_0 that the base made of the concept

    minimise  || eps - eps_theta(x_t, c') ||^2
"""

from efface.eval.attack import ATTACKS
from efface.eval.attacks.p4d import SoftPrompt


@ATTACKS.register("pez")
class PEZ(SoftPrompt):
    """A prompt by which the edited model denoises the base's image best."""

    towards = "noise"
