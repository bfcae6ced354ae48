"""Wait until all chunks of a shared step are finished."""

# pyright: reportCallIssue=false
from numba import intp, njit, types

from fastopt.kernels.cpu.jobs import finished, yield_thread

SIGNATURE = types.void(intp, intp)

SPINS = 50_000  # some 0.1 ms, about as long as a chunk takes, before other threads are let have the core


@njit(nogil=True, error_model="numpy")
def wait(job, chunks):
    """Return when so many chunks of the job are finished."""
    spins = 0
    while finished(job) < chunks:
        spins += 1
        if spins > SPINS:
            yield_thread()
