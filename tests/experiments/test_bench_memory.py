"""The benchmark of memory, in the processes that it measures."""

from experiments.lm.bench_memory import _apart


def test_what_is_measured_grows_as_what_is_counted() -> None:
    """AdamW holds 8 bytes a parameter more than SGD, and gradients of 16 bits 4 fewer. What else a process needs cancels."""
    sgd, adamw, narrow = (
        _apart("12m", base, "float32", "master", kept)
        for base, kept in (("sgd", "float32"), ("adamw", "float32"), ("adamw", "bfloat16"))
    )
    assert (sgd["counted"], adamw["counted"], narrow["counted"]) == (12, 20, 16)
    assert sgd["measured"] > sgd["counted"]
    assert abs(adamw["measured"] - sgd["measured"] - 8) < 3  # resident pages come and go by tens of MiB
    assert abs(adamw["measured"] - narrow["measured"] - 4) < 3
