import torch
from torch import Tensor

from ngdiff.objectives._tokens import IGNORE, check_positive


def rmu(activations: Tensor, labels: Tensor, direction: Tensor, scale: float = 2.0) -> Tensor:
    """Representation misdirection, to be raised and so negative: minus the distance of activations to scale u / ||u||.

    Args:
        activations: shape (rows, tokens, hidden), of one layer (7 where it was published).
        labels: shape (rows, tokens), with -100 where a token does not count.
        direction: u, shape (hidden,), drawn once for a run, uniformly from [0, 1) where it was published.
        scale: length of the target; 2 as in open-unlearning, 6.5 for Zephyr-7B in the paper.

    Returns:
        Shape (), at most 0.

    Raises:
        ValueError: the shapes do not belong together, a row has no token that counts, u is 0 or not finite, or scale is
            not > 0.

    Source: Li et al., "The WMDP benchmark", arXiv 2403.03218.
    """
    check_positive("rmu", scale=scale)
    if direction.shape != activations.shape[-1:] or not direction.any() or not direction.isfinite().all():
        raise ValueError(
            f"rmu: direction of shape {tuple(direction.shape)}; give {activations.shape[-1]} finite numbers, not all of them 0"
        )
    u = direction.detach().double()
    u = u / u.abs().max()  # its square may leave the range of a 16-bit dtype
    return -activation_distance(activations, labels, scale * u / u.norm())


def activation_distance(activations: Tensor, labels: Tensor, target: Tensor) -> Tensor:
    """Mean square of activations - target over hidden units, then over each row's tokens, then over rows.

    RMU's retain loss, with the activations of the model before unlearning as target.

    Args:
        activations: shape (rows, tokens, hidden).
        labels: shape (rows, tokens), with -100 where a token does not count.
        target: shape (hidden,) or as the activations.

    Returns:
        Shape (), >= 0.

    Raises:
        ValueError: the shapes do not belong together, or a row has no token that counts.

    Source: as `rmu`.
    """
    if (
        activations.shape[:-1] != labels.shape
        or labels.dim() != 2
        or target.shape not in (activations.shape, activations.shape[-1:])
    ):
        raise ValueError(
            f"activation_distance: activations {tuple(activations.shape)}, labels {tuple(labels.shape)}, target "
            f"{tuple(target.shape)}; give (rows, tokens, hidden), (rows, tokens) and (hidden,) or (rows, tokens, hidden)"
        )
    counts = labels != IGNORE
    empty = (~counts.any(-1)).nonzero()
    if len(empty):
        raise ValueError(f"activation_distance: row {int(empty[0])} has no token that counts; leave it out of the batch")
    wide = torch.promote_types(activations.dtype, torch.float32)
    goal = target.detach().to(activations.device, wide).expand_as(activations)
    # What does not count is left out before it is squared: it may be NaN, which a mask afterwards would keep in the gradient.
    square = (activations[counts].to(wide) - goal[counts]).square().mean(-1)
    per_row = square.new_zeros(len(labels)).index_add(0, counts.nonzero()[:, 0], square) / counts.sum(-1)
    return per_row.mean()
