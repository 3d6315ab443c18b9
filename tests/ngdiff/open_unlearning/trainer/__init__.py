"""A stand-in for open-unlearning's package of this name, its interface alone: a registry, and how trainers are built."""

TRAINER_REGISTRY: dict = {}


def load_trainer(handler, model, train_dataset, eval_dataset, tokenizer, data_collator, args, evaluators, method_args):
    return TRAINER_REGISTRY[handler](
        model=model,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        tokenizer=tokenizer,
        data_collator=data_collator,
        args=args,
        evaluators=evaluators,
        template_args={"system": ""},
        **method_args,
    )
