"""Unlearning with transformers' Trainer."""

from ngdiff.trainer.trainer import NGDiffTrainer

__all__ = ["NGDiffTrainer"]
