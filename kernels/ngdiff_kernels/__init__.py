"""The step of two-task unlearning on flat buffers, one module a backend.

A backend offers five functions over contiguous one-dimensional tensors: `gram`, `direction_`, `apply_`, `step_` and `probe_`.
`reference` is the plain torch version: it runs on every device, and every faster backend is compared with it.
"""

from ngdiff_kernels.backend import Backend, backend_for
from ngdiff_kernels.bases import BASES, state_shapes

__all__ = ["BASES", "Backend", "backend_for", "state_shapes"]
