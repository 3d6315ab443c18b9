"""Unlearning by normalized gradient difference: two losses, two gradients, one step."""

from ngdiff import objectives, rules
from ngdiff.gram import Coefficients, Gram, Losses
from ngdiff.learning_rate import AutoLearningRate
from ngdiff.optimizer import StepReport, TwoTaskOptimizer
from ngdiff.reference import ReferenceCache
from ngdiff.stopping import StoppingCriteria

__version__ = "0.1.0"
__all__ = [
    "AutoLearningRate",
    "Coefficients",
    "Gram",
    "Losses",
    "ReferenceCache",
    "StepReport",
    "StoppingCriteria",
    "TwoTaskOptimizer",
    "objectives",
    "rules",
]
