"""Device code: a meeting point of all programs of a launch.

`barrier` is two words, zero before the first launch and left ready for the next one: how many programs have arrived, and
how many meetings there have been. No program waits before it has arrived itself, so a wait ends as soon as all have started;
that all do start is the launcher's duty: it asks for no more programs than the device holds at once.
"""

import triton
import triton.language as tl


@triton.jit
def arrive(barrier):
    """Announce that what this program stored so far may be read; True in the program that comes last.

    The last one sees what all others stored, and must call `release` when it has done its part. It may write what the others
    have read before they arrived: hence the wait for all threads of this program, of which a single one announces it.
    """
    tl.debug_barrier()
    return tl.atomic_add(barrier, 1, sem="acq_rel") == tl.num_programs(0) - 1


@triton.jit
def meetings(barrier):
    """How many meetings are over. To be asked before arriving: afterwards the count may move at any moment."""
    return tl.atomic_add(barrier + 1, 0, sem="acquire")


@triton.jit
def release(barrier):
    """End the meeting: only the last program may."""
    tl.atomic_xchg(barrier, 0, sem="relaxed")
    tl.atomic_add(barrier + 1, 1, sem="release")


@triton.jit
def wait(barrier, before):
    """Return when the meeting after the first `before` ones is over; what its last program stored may be read."""
    while tl.atomic_add(barrier + 1, 0, sem="acquire") == before:
        pass
