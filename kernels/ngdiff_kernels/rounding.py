"""Stochastic rounding from float32 to 16 bits, in plain torch.

x becomes one of its two neighbours, the nearer the likelier, so that the expectation is x and updates far below half an ulp
are not lost. The random bits are a function of the seed and the position alone, so that they depend neither on the order of
the work nor on the device (Philox: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
"""

import torch
from torch import Tensor

WIDTH = 8  # elements that share the 128 bits of one Philox call
WORD = 0xFFFFFFFF


def stochastic_round(x: Tensor, dtype: torch.dtype, seed: int, start: int = 0) -> Tensor:
    """x rounded to `dtype` at random.

    Args:
        x: float32, shape (n,).
        dtype: bfloat16 or float16.
        seed: in [0, 2^63); a new one for every step.
        start: position of x[0] in the whole buffer, a multiple of WIDTH.

    Raises:
        ValueError: another dtype, or a start between multiples.
    """
    if start % WIDTH:
        raise ValueError(f"start = {start}: must be a multiple of {WIDTH}, so that elements keep their random bits")
    if dtype not in _ROUND:
        raise ValueError(f"dtype = {dtype}: stochastic rounding is for torch.bfloat16 and torch.float16")
    rows = torch.arange(start // WIDTH, start // WIDTH + -(-len(x) // WIDTH), device=x.device)
    words = torch.stack(_philox(seed, rows), -1)
    halves = torch.stack([words & 0xFFFF, words >> 16], -1).flatten()[: len(x)]
    return _ROUND[dtype](x, halves.int())


def _to_bfloat16(x: Tensor, random: Tensor) -> Tensor:
    # A bfloat16 is the upper half of a float32: adding 16 random bits carries into it with the right probability.
    rounded = ((x.view(torch.int32) + random) & ~0xFFFF).view(torch.float32)
    return torch.where(x.isnan(), x, rounded).bfloat16()  # the bits of a NaN would run over into those of -0


def _to_float16(x: Tensor, random: Tensor) -> Tensor:
    # Between 2^e and 2^(e+1) float16 has a spacing of 2^(e-10), and below 2^-14 everywhere 2^-24.
    spacing = (((x.view(torch.int32) >> 23) & 0xFF) - 127).clamp(-14, 15) - 10
    steps = torch.ldexp(x.abs(), -spacing)
    whole = steps.floor()
    whole += (steps - whole) * 65536 > random
    return torch.copysign(torch.ldexp(whole, spacing), x).half()


_ROUND = {torch.bfloat16: _to_bfloat16, torch.float16: _to_float16}


def _philox(seed: int, rows: Tensor) -> list[Tensor]:
    """Four words of 32 bits for each row number; Philox 4x32 with 10 rounds, the seed as key and the row as counter."""
    c = [rows & WORD, (rows >> 32) & WORD, torch.zeros_like(rows), torch.zeros_like(rows)]
    key = [seed & WORD, seed >> 32 & WORD]
    for _ in range(10):
        # Products of 64 bits wrap around in int64, which leaves every bit where it belongs.
        a, b = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(b >> 32 & WORD) ^ c[1] ^ key[0], b & WORD, (a >> 32 & WORD) ^ c[3] ^ key[1], a & WORD]
        key = [(key[0] + 0x9E3779B9) & WORD, (key[1] + 0xBB67AE85) & WORD]
    return c
