"""Settings of the whole suite: device, random numbers, number of drawn examples."""

import os

import pytest
import torch
from hypothesis import Phase, settings

# Without a GPU the Triton kernels run under its interpreter, which must be chosen before they are imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The examples are the same at every run, so a failure here is a failure everywhere. No deadline: the first call of a torch
# function is slow on any machine.
settings.register_profile("ngdiff", derandomize=True, database=None, deadline=None, max_examples=60)
# For whoever asks only whether a test fails: looking for a simpler example takes longer than finding one.
settings.register_profile("unshrunk", settings.get_profile("ngdiff"), phases=(Phase.explicit, Phase.generate))
settings.load_profile("ngdiff")

# The tensors here are so small that handing them to a pool of threads takes longer than the work.
torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """One suite for every device: NGDIFF_TEST_DEVICE=cuda runs it on a GPU."""
    device = os.environ.get("NGDIFF_TEST_DEVICE")
    if device:
        torch.set_default_device(device)


def pytest_runtest_setup(item: pytest.Item) -> None:
    torch.manual_seed(0)
