"""UnlearnTrainer: between FinetuneTrainer and the methods."""

from trainer.base import FinetuneTrainer


class UnlearnTrainer(FinetuneTrainer):
    pass
