"""Compare tensors with how they were when a step was arranged. Compiled by `guards`, which says what the arrays hold.

It does not release the interpreter's lock: nobody can replace a tensor, and so free it, meanwhile.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
from llvmlite import ir
from numba import int32, int64, intp, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

WORDS = types.Array(int64, 1, "C")
SIGNATURE = intp(WORDS, WORDS, WORDS, WORDS, WORDS, WORDS, WORDS, WORDS, WORDS, WORDS)

SAME, MOVED, CHANGED = 0, 1, 2  # as in guards.Outcome
# Slots of `functions`, in the order of c_abi.FUNCTIONS, and of `common`.
DATA_PTR, DIM, SIZES, STRIDES, DTYPE, DEVICE_TYPE, DEVICE_INDEX, STORAGE_SIZE, STORAGE_OFFSET = range(9)
DISTANCE, P_DTYPE, G_DTYPE, G_DEVICE_TYPE, G_DEVICE_INDEX, G_ITEMSIZE = range(6)

_INT64 = ir.IntType(64)


@intrinsic
def load_at(typingctx, address, dtype):
    """Load a number of that type from an address."""

    def codegen(context, builder, signature, args):
        return builder.load(builder.inttoptr(args[0], context.get_value_type(signature.return_type).as_pointer()))

    return dtype.instance_type(address, dtype), codegen


@intrinsic
def call_status(typingctx, function, tensor, answer):
    """Call the C function at an address, `int32_t f(void* tensor, void* answer)`, known only at run time."""

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(ir.IntType(32), [_INT64, _INT64])
        return builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])

    return types.int32(function, tensor, answer), codegen


@intrinsic
def stack_word(typingctx):
    """Return the address of 8 bytes on this call's stack."""

    def codegen(context, builder, signature, args):
        return builder.ptrtoint(cgutils.alloca_once(builder, _INT64), _INT64)

    return types.int64(), codegen


@njit(inline="always", error_model="numpy")
def answers(function, tensor, answer, dtype, expected):
    """Whether a function's answer, a number of that type, is the expected one."""
    return call_status(function, tensor, answer) == 0 and load_at(answer, dtype) == expected


@njit(inline="always", error_model="numpy")
def answers_all(function, tensor, answer, expected, first, count):
    """Whether a function's answer is the address of the `count` expected numbers from `first` on."""
    if call_status(function, tensor, answer) != 0:
        return False
    numbers = load_at(answer, int64)
    for k in range(count):  # noqa: SIM110 — Numba compiles no generator expressions
        if load_at(numbers + 8 * k, int64) != expected[first + k]:
            return False
    return True


@njit(error_model="numpy")
def check_tensors(functions, common, params, objects, state, p_at, g_at, s_at, expected, found_at):
    """Return SAME, MOVED (gradients alone, to `found_at`) or CHANGED.

    params, state: addresses of an at::Tensor each; objects: those of the gradients' Python objects, which contain one.
    p_at, g_at, s_at: the data pointers as they were.
    expected: of each parameter its number of dimensions, sizes, strides, its gradient's strides, its gradient's bytes.
    """
    data_ptr, dim, sizes, strides = functions[DATA_PTR], functions[DIM], functions[SIZES], functions[STRIDES]
    dtype, answer, outcome, first = functions[DTYPE], stack_word(), SAME, 0
    for i in range(params.size):
        p, g, count = params[i], objects[i] + common[DISTANCE], expected[first]
        if not (
            answers(data_ptr, p, answer, int64, p_at[i])
            and answers(dtype, p, answer, int32, common[P_DTYPE])
            and answers(dim, p, answer, int64, count)
            and answers_all(sizes, p, answer, expected, first + 1, count)
            and answers_all(strides, p, answer, expected, first + 1 + count, count)
            and answers(dtype, g, answer, int32, common[G_DTYPE])
            and answers(dim, g, answer, int64, count)
            and answers_all(sizes, g, answer, expected, first + 1, count)
            and answers_all(strides, g, answer, expected, first + 1 + 2 * count, count)
            and call_status(data_ptr, g, answer) == 0  # a sparse gradient has none
        ):
            return CHANGED
        found_at[i] = load_at(answer, int64)
        if found_at[i] != g_at[i]:
            outcome = MOVED
            if not (
                answers(functions[DEVICE_TYPE], g, answer, int32, common[G_DEVICE_TYPE])
                and answers(functions[DEVICE_INDEX], g, answer, int32, common[G_DEVICE_INDEX])
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
        if not answers(data_ptr, state[i], answer, int64, s_at[i]):
            return CHANGED
    return outcome
