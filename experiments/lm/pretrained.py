"""Pretrained models by a short name: how TOFU prompts them, which settings are published, and what the hub has of them.

Sources: "locuslab" is github.com/locuslab/tofu (config/model_config.yaml, finetune.py, forget.py, README), the code of the TOFU
paper; "open-unlearning" is github.com/locuslab/open-unlearning (configs/model, configs/experiment, docs/repro.md). Both compute
in bfloat16 with weights kept in float32, as `devices.autocast` does on a GPU.
"""

import os
from dataclasses import dataclass, replace

from experiments.lm.training import PRETRAINED, Schedule

PHI_LR = 2e-5  # locuslab, README: "a maximum learning rate of 2e-5" for Phi-1.5; 1e-5 for Llama-2


@dataclass(frozen=True)
class Pretrained:
    """A model of the hub and what the benchmarks publish about it.

    Attributes:
        model: hub id; its tokenizer is that of all that was fine-tuned from it, for some of those folders have none.
        template: of the prompt, a key of `encoding.TEMPLATES`.
        finetuning: on TOFU.
        tuned: whether `finetuning` is published for this model; else it is that of a published model of its size.
        target: hub id of a model fine-tuned on all rows, if there is one.
        retain: hub id of the models fine-tuned on the retain rows alone, with a place for "retain90", "retain95" or "retain99".
    """

    model: str
    template: str
    finetuning: Schedule = PRETRAINED
    tuned: bool = True
    target: str | None = None
    retain: str | None = None

    @property
    def unlearning(self) -> dict[str, Schedule]:
        """Source -> schedule, whose epochs pass over the forget rows; one epoch of warm-up in both.

        locuslab (config/forget.yaml) unlearns as it fine-tunes; open-unlearning (configs/experiment/unlearn/tofu) for 10 epochs
        and with rate 1e-5 for every model. Batch 32 in both: 4 rows x 4 accumulated x 2 GPUs.
        """
        return {
            "locuslab": replace(self.finetuning, epochs=5, warmup=1 / 5),
            "open-unlearning": replace(PRETRAINED, epochs=10, warmup=1 / 10),
        }

    def retain_only(self, preset: str) -> str | None:
        """Hub id of the model that never saw the forget rows of "forget01", "forget05" or "forget10", if there is one."""
        share = preset.removeprefix("forget")
        return self.retain.format(f"retain{100 - int(share)}") if self.retain and share.isdigit() else None


def _open_unlearning(model: str, template: str) -> Pretrained:
    """One of the four that open-unlearning publishes: fine-tuned on all rows, and on each of the three retain sets."""
    name = f"open-unlearning/tofu_{model.rpartition('/')[2]}"
    return Pretrained(model, template, target=f"{name}_full", retain=name + "_{}")


PRETRAINED_MODELS = {
    # Chat template with system prompt and a fixed date: configs/model/Llama-3*-Instruct.yaml of open-unlearning.
    "llama-3.2-1b": _open_unlearning("meta-llama/Llama-3.2-1B-Instruct", "chat"),
    "llama-3.2-3b": _open_unlearning("meta-llama/Llama-3.2-3B-Instruct", "chat"),
    "llama-3.1-8b": _open_unlearning("meta-llama/Llama-3.1-8B-Instruct", "chat"),
    # "[INST] question [/INST]answer" without the system prompt: model_config.yaml and Llama-2-7b-chat-hf.yaml. The original
    # target is locuslab/tofu_ft_llama2-7b; open-unlearning trained it anew, with retain-only twins.
    "llama-2-7b": _open_unlearning("meta-llama/Llama-2-7b-chat-hf", "llama2"),
    # The hub's locuslab/tofu_ft_retain90_phi-1.5 is left out: its config.json says that it is the checkpoint of step 625, 5 x
    # 4000 / 32, of the run on all rows ("ft_epoch5_lr2e-05_phi_full_wd0.01"); 3600 rows take 562.
    "phi-1.5": Pretrained("microsoft/phi-1_5", "qa", replace(PRETRAINED, lr=PHI_LR), target="locuslab/tofu_ft_phi-1.5"),
    # Three more models of the NGDiff paper (arXiv 2410.22086), for which neither benchmark publishes anything: prompts of base
    # models, and the rates of Phi-1.5 (1.4B) and Llama-2 (7B).
    # "Falcon-1B" is falcon-rw-1b: the one model of that size of the Falcon series of 2023; Falcon3-1B came after the paper.
    "falcon-1b": Pretrained("tiiuae/falcon-rw-1b", "qa", replace(PRETRAINED, lr=PHI_LR), tuned=False),
    "gpt2-xl": Pretrained("openai-community/gpt2-xl", "qa", replace(PRETRAINED, lr=PHI_LR), tuned=False),
    "mistral-7b": Pretrained("mistralai/Mistral-7B-v0.1", "qa", tuned=False),
}


@dataclass(frozen=True)
class MuseModels:
    """Hub ids of the two models of a corpus of MUSE. Neither has a tokenizer: see `MUSE_TOKENIZER`.

    Attributes:
        target: fine-tuned on all texts, to be unlearned.
        retrained: on the retain texts alone.
    """

    target: str
    retrained: str


# The hub's organisation muse-bench; spelled as in the README of github.com/jaechan-repo/muse_bench.
MUSE_MODELS = {
    "news": MuseModels("muse-bench/MUSE-News_target", "muse-bench/MUSE-News_retrain"),
    "books": MuseModels("muse-bench/MUSE-Books_target", "muse-bench/MUSE-Books_retrain"),
}
MUSE_TOKENIZER = "meta-llama/Llama-2-7b-hf"
MUSE_CHUNK = 2048  # tokens of a row: MAX_LEN of baselines/scripts
# baselines/scripts (10 epochs, 1e-5, 4 rows x 8 GPUs) and baselines/baselines/iterative.py (constant rate); the rest are the
# defaults of transformers. Epochs pass over the forget chunks. open-unlearning (configs/experiment/unlearn/muse) has the same.
MUSE_UNLEARNING = Schedule(epochs=10, batch=32, lr=1e-5, warmup=0.0, betas=(0.9, 0.999), decay="constant")


def resolve(name: str | None) -> Pretrained | None:
    """The preset of a short name, upper or lower case; None for hub ids, folders and names that are not known.

    A folder of that name goes first, as it does in transformers.
    """
    if name is None or os.path.isdir(name):  # which is False, and no error, for a name that the system refuses
        return None
    return PRETRAINED_MODELS.get(name.lower())
