"""What the printed CPU modules import: buffers that do not alias, exact operations, and claims on chunks of work.

Numba would need run-time overlap checks between the buffers of a kernel and gives up vectorising when there are more than
a few. A `buffer` here is a bare address whose loads and stores carry LLVM's scoped alias metadata: the compiler knows
that no two buffers of a kernel overlap (the dispatcher has checked it) and vectorises any number of them.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import operator

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

_WORD = ir.IntType(64)


class BufferType(types.Type):
    """The type of buffer number `k` of `count`, with elements of `dtype`."""

    def __init__(self, dtype: types.Type, k: int, count: int):
        self.dtype, self.k, self.count = dtype, k, count
        super().__init__(name=f"buffer({dtype}, {k}, {count})")


@register_model(BufferType)
class _BufferModel(models.PrimitiveModel):
    def __init__(self, manager, fe_type):
        super().__init__(manager, fe_type, _WORD)


@intrinsic(prefer_literal=True)
def buffer(typingctx, address, first, dtype, k, count):  # noqa: ARG001 — Numba calls it with these names
    """View memory from `address`, beginning at element `first`, as buffer `k` of the `count` buffers of a kernel."""
    result = BufferType(dtype.instance_type, k.literal_value, count.literal_value)

    def codegen(context, builder, signature, args):
        size = context.get_abi_sizeof(context.get_value_type(signature.return_type.dtype))
        return builder.add(args[0], builder.mul(args[1], ir.Constant(_WORD, size)))

    return result(address, first, dtype, k, count), codegen


def _element(context, builder, buffer_type, address, index):
    pointer = builder.inttoptr(address, context.get_value_type(buffer_type.dtype).as_pointer())
    return builder.gep(pointer, [index], inbounds=True)


def _declare_scopes(builder, instruction, buffer_type):
    """Say of a load or store that it touches this buffer and none of the kernel's others."""
    module = builder.module
    domain = module.add_metadata([ir.MetaDataString(module, "fastopt")])
    scopes = [
        module.add_metadata([ir.MetaDataString(module, f"buffer {k}"), domain]) for k in range(buffer_type.count)
    ]
    own = scopes.pop(buffer_type.k)
    instruction.set_metadata("alias.scope", module.add_metadata([own]))
    instruction.set_metadata("noalias", module.add_metadata(scopes))
    return instruction


@type_callable(operator.getitem)
def _type_getitem(context):  # noqa: ARG001
    def typer(buffer_type, index):
        if isinstance(buffer_type, BufferType) and isinstance(index, types.Integer):
            return buffer_type.dtype
        return None

    return typer


@lower_builtin(operator.getitem, BufferType, types.Integer)
def _lower_getitem(context, builder, signature, args):
    element = _element(context, builder, signature.args[0], *args)
    return _declare_scopes(builder, builder.load(element), signature.args[0])


@type_callable(operator.setitem)
def _type_setitem(context):  # noqa: ARG001
    def typer(buffer_type, index, value):
        if isinstance(buffer_type, BufferType) and isinstance(index, types.Integer) and value == buffer_type.dtype:
            return types.none
        return None

    return typer


@lower_builtin(operator.setitem, BufferType, types.Integer, types.Any)
def _lower_setitem(context, builder, signature, args):
    element = _element(context, builder, signature.args[0], args[0], args[1])
    _declare_scopes(builder, builder.store(args[2], element), signature.args[0])
    return context.get_dummy_value()


def _float_intrinsic(name, arity=1):
    """Make the LLVM intrinsic of that name available: exact or correctly rounded, vectorised, of its operands' type."""

    def one(typingctx, x):  # noqa: ARG001
        def codegen(context, builder, signature, args):  # noqa: ARG001
            function = cgutils.get_or_insert_function(
                builder.module,
                ir.FunctionType(args[0].type, [a.type for a in args]),
                f"llvm.{name}.{'f32' if signature.return_type == types.float32 else 'f64'}",
            )
            return builder.call(function, args)

        return x(*[x] * arity), codegen

    def two(typingctx, x, y):
        return one(typingctx, x) if x == y else None

    chosen = one if arity == 1 else two
    chosen.__name__ = name
    return intrinsic(chosen)


sqrt = _float_intrinsic("sqrt")
fabs = _float_intrinsic("fabs")
rint = _float_intrinsic("rint")
floor = _float_intrinsic("floor")
ceil = _float_intrinsic("ceil")
trunc = _float_intrinsic("trunc")
copysign = _float_intrinsic("copysign", arity=2)


@intrinsic
def select(typingctx, condition, a, b):  # noqa: ARG001
    """Choose a where the condition holds, else b; both are computed, so loops stay free of branches."""
    if condition != types.boolean or a != b:
        return None

    def codegen(context, builder, signature, args):
        bit = context.cast(builder, args[0], signature.args[0], types.boolean)
        return builder.select(bit, args[1], args[2])

    return a(condition, a, b), codegen


@intrinsic
def sign(typingctx, x):  # noqa: ARG001
    """Give −1, +0 or 1, and NaN for NaN, as np.sign does."""

    def codegen(context, builder, signature, args):  # noqa: ARG001
        zero, one = ir.Constant(args[0].type, 0.0), ir.Constant(args[0].type, 1.0)
        negative = builder.select(builder.fcmp_ordered("<", args[0], zero), ir.Constant(args[0].type, -1.0), args[0])
        signed = builder.select(builder.fcmp_ordered("==", args[0], zero), zero, negative)
        return builder.select(builder.fcmp_ordered(">", args[0], zero), one, signed)

    return x(x), codegen


@intrinsic
def bitcast(typingctx, x, dtype):  # noqa: ARG001
    """Read the bits of x as another type of the same size."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], context.get_value_type(signature.return_type))

    return dtype.instance_type(x, dtype), codegen


@intrinsic
def _fetch_add(typingctx, address, amount):  # noqa: ARG001
    def codegen(context, builder, signature, args):  # noqa: ARG001
        return builder.atomic_rmw("add", builder.inttoptr(args[0], _WORD.as_pointer()), args[1], "acq_rel")

    return types.int64(address, amount), codegen


@intrinsic
def _load_acquire(typingctx, address):  # noqa: ARG001
    def codegen(context, builder, signature, args):  # noqa: ARG001
        return builder.load_atomic(builder.inttoptr(args[0], _WORD.as_pointer()), "acquire", 8)

    return types.int64(address), codegen


# A job is two int64 counters, 64 bytes apart so that they do not share a cache line: the first element nobody has claimed,
# and the number of chunks that are finished.
FINISHED_AT = 64


@njit
def claim(job, previous, chunk):
    """Report the chunk that began at `previous` as finished and claim the next; with no job (0), just go on."""
    if job == 0:
        return previous + chunk
    if previous >= 0:
        _fetch_add(job + FINISHED_AT, 1)
    return _fetch_add(job, chunk)


@njit(types.boolean(types.intp, types.intp, types.intp), nogil=True, cache=True)
def wait(job, chunks, polls):
    """Watch the job until all its chunks are finished (True) or `polls` looks have passed (False)."""
    for _ in range(polls):  # noqa: SIM110 — compiled
        if _load_acquire(job + FINISHED_AT) >= chunks:
            return True
    return False
