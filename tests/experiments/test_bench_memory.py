"""The benchmark of memory, in the processes that it measures."""

from experiments.lm.bench_memory import _apart


def test_what_is_measured_grows_as_what_is_counted() -> None:
    """AdamW holds 8 bytes a parameter more than SGD. What else a process needs cancels."""
    sgd, adamw = (_apart("12m", base, "float32", "master") for base in ("sgd", "adamw"))
    assert (sgd["counted"], adamw["counted"]) == (12, 20)
    assert sgd["measured"] > sgd["counted"]
    assert abs(adamw["measured"] - sgd["measured"] - 8) < 3  # resident pages come and go by tens of MiB
