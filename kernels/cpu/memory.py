"""Memory of printed CPU kernels: buffers that do not alias, read and written by element or by vector, and prefetched.

Numba would need run-time overlap checks between the buffers of a kernel and gives up vectorising when there are more
than a few. A `buffer` here is a bare address whose loads and stores carry LLVM's scoped alias metadata: the compiler
knows that no two buffers of a kernel overlap (the dispatcher has checked it) and vectorises any number of them.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import operator

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, models, register_model

from fastopt.kernels.cpu.values import LANES, WORD, select, typed_first, word

_BYTE, _I32, _I64 = (ir.IntType(bits) for bits in (8, 32, 64))

AHEAD = 2048
"""Bytes by which `prefetch` runs ahead."""

SCRATCH = 256
"""Elements that `scratch` has room for: those of a tile."""

_APART = 16
"""Elements between one `scratch` and the next, so that what is written at once is not all a power of two apart."""

_NARROWS = LANES == 16
"""Whether the processor narrows a vector as it stores it. Others pack several into one."""


class BufferType(types.Type):
    """The type of buffer number `k` of `count`, with elements of `dtype`, of which integers are read as words."""

    def __init__(self, dtype: types.Type, k: int, count: int):
        self.dtype, self.k, self.count = dtype, k, count
        self.value = dtype if isinstance(dtype, types.Float) else WORD
        self.narrow = dtype in (types.uint8, types.uint16)
        # A word may hold two elements of 16 or of 8 bits, or as int32 four of 8, so it is aligned as those are.
        self.align = {types.uint32: 2, types.uint16: 1, types.int32: 1}.get(dtype)
        super().__init__(name=f"buffer({dtype}, {k}, {count})")


@register_model(BufferType)
class _BufferModel(models.PrimitiveModel):
    def __init__(self, manager, fe_type):
        super().__init__(manager, fe_type, _I64)


@intrinsic(prefer_literal=True)
def buffer(typingctx, address, first, dtype, k, count):
    """View memory from `address`, beginning at element `first`, as buffer `k` of the `count` buffers of a kernel.

    With a count of 0 it may be that of any of them.
    """
    result = BufferType(dtype.instance_type, k.literal_value, count.literal_value)

    def codegen(context, builder, signature, args):
        return builder.add(args[0], builder.mul(args[1], _I64(_size(context, result))))

    return result(address, first, dtype, k, count), codegen


@intrinsic(prefer_literal=True)
def scratch(typingctx, dtype, k, count):
    """Return buffer `k` of the `count` buffers of a kernel, of `SCRATCH` elements on this call's stack."""
    result = BufferType(dtype.instance_type, k.literal_value, count.literal_value)

    def codegen(context, builder, signature, args):
        kind = ir.ArrayType(context.get_value_type(result.dtype), SCRATCH + _APART)
        memory = cgutils.alloca_once(builder, kind)
        memory.align = 64
        return builder.ptrtoint(memory, _I64)

    return result(dtype, k, count), codegen


def _element_at(context, builder, buffer_type, address, index):
    pointer = builder.inttoptr(address, context.get_value_type(buffer_type.dtype).as_pointer())
    return builder.gep(pointer, [index], inbounds=True)


def _declare_scopes(builder, instruction, buffer_type):
    """Mark a load or store as one that touches this buffer and none of the kernel's others."""
    if not buffer_type.count:
        return instruction
    module = builder.module
    domain = module.add_metadata([ir.MetaDataString(module, "fastopt")])
    scopes = [module.add_metadata([ir.MetaDataString(module, f"buffer {k}"), domain]) for k in range(buffer_type.count)]
    own = scopes.pop(buffer_type.k)
    instruction.set_metadata("alias.scope", module.add_metadata([own]))
    instruction.set_metadata("noalias", module.add_metadata(scopes))
    return instruction


@intrinsic(prefer_literal=True)
def prefetch(typingctx, view, count):
    """Prefetch the `count` elements of a buffer that lie `AHEAD` bytes beyond its beginning, a hint that cannot fault.

    The processor's own prefetchers stop at each page of 4 KiB and a step walks several arrays at once.
    """

    def codegen(context, builder, signature, args):
        for offset in range(AHEAD, AHEAD + count.literal_value * _size(context, view), 64):
            _prefetch(builder, builder.add(args[0], _I64(offset)))
        return context.get_dummy_value()

    return types.void(view, count), codegen


def _prefetch(builder, address):
    byte, flag = _BYTE.as_pointer(), _I32
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag]), "llvm.prefetch.p0"
    )
    pointer = builder.inttoptr(address, byte)
    builder.call(function, [pointer, flag(0), flag(3), flag(1)])  # to read, into every cache level, data


@typed_first(operator.getitem)
def _type_getitem(buffer_type, index):
    return buffer_type.value if isinstance(buffer_type, BufferType) and isinstance(index, types.Integer) else None


@lower_builtin(operator.getitem, BufferType, types.Integer)
def _lower_getitem(context, builder, signature, args):
    element = _element_at(context, builder, signature.args[0], *args)
    loaded = _declare_scopes(builder, builder.load(element, align=signature.args[0].align), signature.args[0])
    return builder.zext(loaded, _I32) if signature.args[0].narrow else loaded


@typed_first(operator.setitem)
def _type_setitem(buffer_type, index, value):
    known = isinstance(buffer_type, BufferType) and isinstance(index, types.Integer) and value == buffer_type.value
    return types.none if known else None


@lower_builtin(operator.setitem, BufferType, types.Integer, types.Any)
def _lower_setitem(context, builder, signature, args):
    element = _element_at(context, builder, signature.args[0], args[0], args[1])
    given = builder.trunc(args[2], element.type.pointee) if signature.args[0].narrow else args[2]
    _declare_scopes(builder, builder.store(given, element, align=signature.args[0].align), signature.args[0])
    return context.get_dummy_value()


def load_vector(context, builder, buffer_type, address, i, k, *, sign=False):
    """Read vector number k of those that begin at element i of a buffer, of narrow elements with or without a sign."""
    pointer = _vector_at(context, builder, buffer_type, address, i, k, LANES)
    loaded = builder.load(pointer, align=_alignment(context, buffer_type))
    _declare_scopes(builder, loaded, buffer_type)
    widen = builder.sext if sign else builder.zext
    return widen(loaded, ir.VectorType(_I32, LANES)) if buffer_type.narrow else loaded


def store_vectors(context, builder, buffer_type, address, i, k, vectors):
    """Write vectors to a buffer as number k and after, of narrow elements the lowest bits."""
    while len(vectors) > 1 and not _NARROWS:
        both = ir.Constant(ir.VectorType(_I32, 2 * vectors[0].type.count), list(range(2 * vectors[0].type.count)))
        vectors = [builder.shuffle_vector(a, b, both) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
    for number, x in enumerate(vectors, k):
        pointer = _vector_at(context, builder, buffer_type, address, i, number, x.type.count)
        x = builder.trunc(x, pointer.type.pointee) if buffer_type.narrow else x
        _declare_scopes(builder, builder.store(x, pointer, align=_alignment(context, buffer_type)), buffer_type)


def load_bytes(context, builder, buffer_type, address, first, count):
    """Read so many bytes from byte `first` of a buffer on, as a vector."""
    return _declare_scopes(builder, builder.load(_bytes_at(builder, address, _I64(first), count), align=1), buffer_type)


def store_bytes(context, builder, buffer_type, address, i, values):
    """Write a vector of bytes from element i of a buffer on."""
    first = builder.mul(i, _I64(_size(context, buffer_type)))
    pointer = _bytes_at(builder, address, first, values.type.count)
    _declare_scopes(builder, builder.store(values, pointer, align=_alignment(context, buffer_type)), buffer_type)


def _bytes_at(builder, address, first, count):
    pointer = builder.gep(builder.inttoptr(address, _BYTE.as_pointer()), [first], inbounds=True)
    return builder.bitcast(pointer, ir.VectorType(_BYTE, count).as_pointer())


def prefetch_vectors(context, builder, buffer_type, address, first, count):
    """Prefetch so many vectors of a buffer from element `first` on."""
    size = _size(context, buffer_type)
    begin = builder.add(address, builder.mul(first, _I64(size)))
    for offset in range(0, count * LANES * size, 64):
        _prefetch(builder, builder.add(begin, _I64(offset)))


def _vector_at(context, builder, buffer_type, address, index, number, count):
    first = builder.add(index, _I64(number * LANES))
    element = _element_at(context, builder, buffer_type, address, first)
    return builder.bitcast(element, ir.VectorType(element.type.pointee, count).as_pointer())


def _alignment(context, buffer_type):
    return buffer_type.align or _size(context, buffer_type)


def _size(context, buffer_type):
    return context.get_abi_sizeof(context.get_value_type(buffer_type.dtype))


@intrinsic
def tile_total(typingctx, view, count):
    """Fold the first `count` elements of a tile's scratch by halves, with zeros beyond them: see `fastopt.total`."""

    def codegen(context, builder, signature, args):
        address, count = args
        element = context.get_value_type(view.dtype)
        with cgutils.for_range_slice(builder, count, _I64(SCRATCH), _I64(1), inc=True) as (index, _):
            _declare_scopes(
                builder, builder.store(element(0.0), _element_at(context, builder, view, address, index)), view
            )
        parts = []
        for k in range(SCRATCH // LANES):
            pointer = _vector_at(context, builder, view, address, _I64(0), k, LANES)
            parts.append(_declare_scopes(builder, builder.load(pointer, align=_alignment(context, view)), view))
        while len(parts) > 1:
            half = len(parts) // 2
            parts = [builder.fadd(a, b) for a, b in zip(parts[:half], parts[half:], strict=True)]
        (x,) = parts
        width = LANES
        while width > 1:
            width //= 2
            halves = [ir.Constant(ir.VectorType(_I32, width), list(range(k, k + width))) for k in (0, width)]
            x = builder.fadd(*(builder.shuffle_vector(x, x, half) for half in halves))
        return builder.extract_element(x, _I32(0))

    return view.dtype(view, count), codegen


@njit
def one_nan(words, count):
    """Make NaN the canonical one among the first `count` bfloat16s of a buffer."""
    for i in range(count):
        x = words[i]
        words[i] = select(x & word(0x7FFF) > word(0x7F80), word(0x7FC0), x)


@njit
def one_nan_of_two(words, lower, count):
    """Make NaN the canonical one among `count` float32s that are split in two buffers."""
    for i in range(count):
        x, y = words[i], lower[i]
        whole = (x - (y >> word(15)) << word(16)) | y
        nan = whole & word(0x7FFFFFFF) > word(0x7F800000)
        words[i], lower[i] = select(nan, word(0x7FC0), x), select(nan, word(0), y)
