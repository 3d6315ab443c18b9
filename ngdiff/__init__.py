"""Unlearning by normalized gradient difference: two losses, two gradients, one step."""

from ngdiff import objectives, rules
from ngdiff.gram import Coefficients, Gram, Losses
from ngdiff.learning_rate import AutoLearningRate
from ngdiff.optimizer import StepReport, TwoTaskOptimizer

__version__ = "0.1.0"
__all__ = [
    "AutoLearningRate",
    "Coefficients",
    "Gram",
    "Losses",
    "StepReport",
    "TwoTaskOptimizer",
    "objectives",
    "rules",
]
