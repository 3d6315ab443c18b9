"""FinetuneTrainer: evaluates by evaluators, in a folder below the checkpoint's."""

from pathlib import Path

from transformers import Trainer


class FinetuneTrainer(Trainer):
    def __init__(self, evaluators=None, template_args=None, *args, **kwargs):
        self.evaluators, self.template_args = evaluators, template_args
        super().__init__(*args, **kwargs)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval", trial=None):
        if not self.evaluators:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix) if eval_dataset is not None else {}
        folder = Path(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}", "evals")
        folder.mkdir(parents=True, exist_ok=True)
        return self.evaluators(self.model, self.tokenizer, self.template_args, folder)
