"""Compare tensors with how they were when a step was arranged. Compiled by `guards`, which says what the arrays hold.

It does not release the interpreter's lock: nobody can replace a tensor, and so free it, while it is looked at.
"""

# pyright: reportCallIssue=false
from numba import int32, int64, intp, njit, types

from fastopt.torch.intrinsics import call_status, load_at, prefetch_at, stack_word

WORDS = types.Array(int64, 1, "C")
SIGNATURE = intp(WORDS, WORDS, WORDS, WORDS, WORDS, WORDS, WORDS, WORDS, WORDS, WORDS)

SAME, MOVED, CHANGED = 0, 1, 2  # as in guards.Outcome
# Slots of `functions`, in the order of c_abi.FUNCTIONS, and of `common`.
DATA_PTR, DIM, SIZES, STRIDES, DTYPE, LAYOUT, DEVICE_TYPE, DEVICE_INDEX, STORAGE_SIZE, STORAGE_OFFSET = range(10)
DISTANCE, STRIDED, P_DTYPE, G_DTYPE, G_DEVICE_TYPE, G_DEVICE_INDEX, G_ITEMSIZE = range(7)

AHEAD = 4  # tensors by which it prefetches: after a step 38 µs for 1,000 instead of 43


@njit(cache=True, inline="always", error_model="numpy")
def is_int64(function, tensor, answer, expected):
    """Whether a function's answer, an int64, is the expected one."""
    return call_status(function, tensor, answer) == 0 and load_at(answer, int64) == expected


@njit(cache=True, inline="always", error_model="numpy")
def is_int32(function, tensor, answer, expected):
    """Whether a function's answer, an int32, is the expected one."""
    return call_status(function, tensor, answer) == 0 and load_at(answer, int32) == expected


@njit(cache=True, inline="always", error_model="numpy")
def are_int64(function, tensor, answer, expected, first, count):
    """Whether a function's answer is the address of the `count` expected numbers from `first` on."""
    if call_status(function, tensor, answer) != 0:
        return False
    numbers = load_at(answer, int64)
    for k in range(count):  # noqa: SIM110 — Numba compiles no generator expressions
        if load_at(numbers + 8 * k, int64) != expected[first + k]:
            return False
    return True


@njit(cache=True, inline="always", error_model="numpy")
def prefetch_tensor(handles, i):
    """Prefetch what the next tensors' handles point to."""
    if i + 2 * AHEAD < handles.size:
        prefetch_at(handles[i + 2 * AHEAD])
        prefetch_at(load_at(handles[i + AHEAD], int64))


@njit(cache=True, error_model="numpy")
def check_tensors(functions, common, params, objects, state, p_at, g_at, s_at, expected, found_at):
    """Return SAME, MOVED (gradients alone, to `found_at`) or CHANGED.

    params, state: addresses of an at::Tensor each; objects: those of the gradients' Python objects, which contain one.
    p_at, g_at, s_at: the data pointers as they were.
    expected: of each parameter its number of dimensions, sizes, strides, its gradient's strides, its gradient's bytes.
    """
    data_ptr, dim, sizes, strides = functions[DATA_PTR], functions[DIM], functions[SIZES], functions[STRIDES]
    dtype, answer, outcome, first = functions[DTYPE], stack_word(), SAME, 0
    for i in range(params.size):
        prefetch_tensor(params, i)
        p, g, count = params[i], objects[i] + common[DISTANCE], expected[first]
        if not (
            is_int64(data_ptr, p, answer, p_at[i])
            and is_int32(dtype, p, answer, common[P_DTYPE])
            and is_int64(dim, p, answer, count)
            and are_int64(sizes, p, answer, expected, first + 1, count)
            and are_int64(strides, p, answer, expected, first + 1 + count, count)
            and is_int32(functions[LAYOUT], g, answer, common[STRIDED])
            and is_int32(dtype, g, answer, common[G_DTYPE])
            and is_int64(dim, g, answer, count)
            and are_int64(sizes, g, answer, expected, first + 1, count)
            and are_int64(strides, g, answer, expected, first + 1 + 2 * count, count)
            and call_status(data_ptr, g, answer) == 0
        ):
            return CHANGED
        found_at[i] = load_at(answer, int64)
        if found_at[i] != g_at[i]:
            outcome = MOVED
            if not (
                is_int32(functions[DEVICE_TYPE], g, answer, common[G_DEVICE_TYPE])
                and is_int32(functions[DEVICE_INDEX], g, answer, common[G_DEVICE_INDEX])
                and call_status(functions[STORAGE_OFFSET], g, answer) == 0
            ):
                return CHANGED
            begin, size = common[G_ITEMSIZE] * load_at(answer, int64), expected[first + 1 + 3 * count]
            if size > 0 and found_at[i] == begin:  # a storage without an address
                return CHANGED
            if call_status(functions[STORAGE_SIZE], g, answer) != 0 or load_at(answer, int64) < begin + size:
                return CHANGED
        first += 2 + 3 * count
    for i in range(state.size):
        prefetch_tensor(state, i)
        if not is_int64(data_ptr, state[i], answer, s_at[i]):
            return CHANGED
    return outcome
