"""Device code: the combination rules, and the guard that refuses a step.

A rule is a function of the three inner products, the two losses and one parameter of its own, all float64, that returns
(c_R, c_F). `ngdiff.rules` defines what each must be; a test compares the two.
"""

import triton
import triton.language as tl

TINY = tl.constexpr(2.2250738585072014e-308)  # smallest normal float64: no square of a non-zero float32 is below it


@triton.jit
def inverse_norm(square):
    """1 / ||g|| from g.g, and 0 for g = 0."""
    return tl.where(square >= TINY, 1.0 / tl.sqrt(tl.where(square >= TINY, square, 1.0)), 0.0)


@triton.jit
def inverse_loss(loss):
    """1 / |L|, and 0 for L = 0."""
    return tl.where(loss == 0, 0.0, 1.0 / tl.where(loss == 0, 1.0, tl.abs(loss)))


@triton.jit
def ngdiff(rr, ff, rf, retain_loss, forget_loss, parameter):
    return inverse_norm(rr), inverse_norm(ff)


@triton.jit
def gdiff(rr, ff, rf, retain_loss, forget_loss, parameter):
    return parameter, 1.0 - parameter


@triton.jit
def ga(rr, ff, rf, retain_loss, forget_loss, parameter):
    return parameter * 0.0, parameter * 0.0 + 1.0


@triton.jit
def lossnorm(rr, ff, rf, retain_loss, forget_loss, parameter):
    return inverse_loss(retain_loss), inverse_loss(forget_loss)


RULES = {"ngdiff": ngdiff, "gdiff": gdiff, "ga": ga, "lossnorm": lossnorm}


@triton.jit
def is_finite(x):
    """Whether x is neither infinite nor NaN."""
    return tl.abs(x) <= 1.7976931348623157e308


@triton.jit
def may_step(rr, ff, rf, retain_loss, forget_loss, c_r, c_f, limit):
    """Whether every input is finite and no element of c_R g_R - c_F g_F can leave its dtype, for its norm is below `limit`."""
    finite = is_finite(rr) & is_finite(ff) & is_finite(rf) & is_finite(retain_loss) & is_finite(forget_loss)
    return finite & (tl.abs(c_r) * tl.sqrt(rr) + tl.abs(c_f) * tl.sqrt(ff) < limit)
