"""Unlearning by normalized gradient difference: two losses, two gradients, one step."""

from typing import TYPE_CHECKING, Any

from ngdiff import objectives, rules
from ngdiff.gram import Coefficients, Gram, Losses
from ngdiff.learning_rate import AutoLearningRate
from ngdiff.optimizer import StepReport, TwoTaskOptimizer
from ngdiff.reference import ReferenceCache
from ngdiff.stopping import StoppingCriteria

if TYPE_CHECKING:
    from ngdiff.trainer import NGDiffTrainer

__version__ = "0.1.0"
__all__ = [
    "AutoLearningRate",
    "Coefficients",
    "Gram",
    "Losses",
    "NGDiffTrainer",
    "ReferenceCache",
    "StepReport",
    "StoppingCriteria",
    "TwoTaskOptimizer",
    "objectives",
    "rules",
]


def __getattr__(name: str) -> Any:
    """The Trainer on first use: it imports transformers, which takes seconds."""
    if name == "NGDiffTrainer":
        from ngdiff.trainer import NGDiffTrainer

        return NGDiffTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
