"""Objectives: from logits and labels to the scalar loss of one task. One objective a file.

The optimizer lowers the retain loss and raises the forget loss. So forget objectives return what is to be raised: those that
are published as losses to be lowered come with their sign changed, and their values are negative.

Labels are input ids with -100 where a token is not scored, as in transformers; position t of the logits predicts token t + 1.
Values are float32 or wider. What an objective needs of the model as it was before unlearning (log-probabilities, logits or
activations) is an argument, to be computed once and kept, so that no second model need stay in memory.
"""

from ngdiff.objectives._ceu import ceu
from ngdiff.objectives._idk import idk_dpo, idk_nll
from ngdiff.objectives._kl import kl
from ngdiff.objectives._nll import nll
from ngdiff.objectives._npo import npo
from ngdiff.objectives._rmu import activation_distance, rmu
from ngdiff.objectives._satimp import satimp
from ngdiff.objectives._simnpo import simnpo
from ngdiff.objectives._tokens import IGNORE, answer_log_probs
from ngdiff.objectives._undial import undial
from ngdiff.objectives._wga import wga

__all__ = [
    "IGNORE",
    "activation_distance",
    "answer_log_probs",
    "ceu",
    "idk_dpo",
    "idk_nll",
    "kl",
    "nll",
    "npo",
    "rmu",
    "satimp",
    "simnpo",
    "undial",
    "wga",
]
