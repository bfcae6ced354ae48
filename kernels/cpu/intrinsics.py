"""What the printed CPU modules import: buffers that do not alias, 32-bit words, exact operations, claims on chunks.

Numba would need run-time overlap checks between the buffers of a kernel and gives up vectorising when there are more
than a few. A `buffer` here is a bare address whose loads and stores carry LLVM's scoped alias metadata: the compiler
knows that no two buffers of a kernel overlap (the dispatcher has checked it) and vectorises any number of them.

Numba widens the arithmetic of its uint32 to 64 bits, and LLVM then vectorises it at a quarter of the width. A `word` is
a uint32 that stays one.

One file, of over 300 lines, because compiled kernels on disk go by its text: whatever they import is here.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import inspect
import operator
import platform
import sys

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

_BYTE, _WORD, _INT64 = (ir.IntType(bits) for bits in (8, 32, 64))

AHEAD = 2048
"""Bytes by which `prefetch` runs ahead."""

SCRATCH = 256
"""Elements that `scratch` has room for: those of a tile."""


class WordType(types.Type):
    """The type of an unsigned 32-bit integer with wrap-around arithmetic."""

    def __init__(self):
        super().__init__(name="word")


_word = WordType()


@register_model(WordType)
class _WordModel(models.PrimitiveModel):
    def __init__(self, manager, fe_type):
        super().__init__(manager, fe_type, _WORD)


class BufferType(types.Type):
    """The type of buffer number `k` of `count`, with elements of `dtype`, of which integers are read as words."""

    def __init__(self, dtype: types.Type, k: int, count: int):
        self.dtype, self.k, self.count = dtype, k, count
        self.value = dtype if isinstance(dtype, types.Float) else _word
        self.narrow = dtype in (types.uint8, types.uint16)
        # A word may hold two elements of 16 or of 8 bits, or as int32 four of 8, so it is aligned as those are.
        self.align = {types.uint32: 2, types.uint16: 1, types.int32: 1}.get(dtype)
        super().__init__(name=f"buffer({dtype}, {k}, {count})")


@register_model(BufferType)
class _BufferModel(models.PrimitiveModel):
    def __init__(self, manager, fe_type):
        super().__init__(manager, fe_type, _INT64)


@intrinsic(prefer_literal=True)
def buffer(typingctx, address, first, dtype, k, count):
    """View memory from `address`, beginning at element `first`, as buffer `k` of the `count` buffers of a kernel.

    With a count of 0 it may be that of any of them.
    """
    result = BufferType(dtype.instance_type, k.literal_value, count.literal_value)

    def codegen(context, builder, signature, args):
        size = context.get_abi_sizeof(context.get_value_type(signature.return_type.dtype))
        return builder.add(args[0], builder.mul(args[1], ir.Constant(_INT64, size)))

    return result(address, first, dtype, k, count), codegen


@intrinsic
def scratch(typingctx, dtype):
    """Return the address of memory on this call's stack for `SCRATCH` elements, to be read through a `buffer`."""

    def codegen(context, builder, signature, args):
        kind = ir.ArrayType(context.get_value_type(dtype.instance_type), SCRATCH)
        memory = cgutils.alloca_once(builder, kind)
        memory.align = 64
        return builder.ptrtoint(memory, _INT64)

    return types.int64(dtype), codegen


def _element(context, builder, buffer_type, address, index):
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
        size = context.get_abi_sizeof(context.get_value_type(signature.args[0].dtype))
        for offset in range(AHEAD, AHEAD + count.literal_value * size, 64):
            _prefetch(builder, builder.add(args[0], ir.Constant(_INT64, offset)))
        return context.get_dummy_value()

    return types.void(view, count), codegen


def _prefetch(builder, address):
    byte, flag = _BYTE.as_pointer(), _WORD
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag]), "llvm.prefetch.p0"
    )
    pointer = builder.inttoptr(address, byte)
    builder.call(function, [pointer, flag(0), flag(3), flag(1)])  # to read, into every cache level, data


@type_callable(operator.getitem)
def _type_getitem(context):
    def typer(buffer_type, index):
        if isinstance(buffer_type, BufferType) and isinstance(index, types.Integer):
            return buffer_type.value
        return None

    return typer


@lower_builtin(operator.getitem, BufferType, types.Integer)
def _lower_getitem(context, builder, signature, args):
    element = _element(context, builder, signature.args[0], *args)
    loaded = _declare_scopes(builder, builder.load(element, align=signature.args[0].align), signature.args[0])
    return builder.zext(loaded, _WORD) if signature.args[0].narrow else loaded


@type_callable(operator.setitem)
def _type_setitem(context):
    def typer(buffer_type, index, value):
        if isinstance(buffer_type, BufferType) and isinstance(index, types.Integer) and value == buffer_type.value:
            return types.none
        return None

    return typer


@lower_builtin(operator.setitem, BufferType, types.Integer, types.Any)
def _lower_setitem(context, builder, signature, args):
    element = _element(context, builder, signature.args[0], args[0], args[1])
    given = builder.trunc(args[2], element.type.pointee) if signature.args[0].narrow else args[2]
    _declare_scopes(builder, builder.store(given, element, align=signature.args[0].align), signature.args[0])
    return context.get_dummy_value()


def instruction(result):
    """Make an intrinsic of a function of LLVM's builder and values; `result` returns its type, or None, from theirs."""

    def define(build):
        def definition(typingctx, *operands):
            kind = result(*operands)
            if kind is None:
                return None
            return kind(*operands), lambda context, builder, signature, args: build(builder, *args)

        definition.__name__, definition.__signature__ = build.__name__, inspect.signature(build)
        return intrinsic(definition)

    return define


def _same(x, *others):
    return x if all(other == x for other in others) else None


def _words(*operands):
    return _word if all(x == _word or isinstance(x, types.Integer) for x in operands) else None


def _llvm(builder, name, x, *more):
    """Call the LLVM intrinsic of that name: exact or correctly rounded, vectorised."""
    operands, suffix = [x, *more], "f32" if x.type == ir.FloatType() else "f64"
    kind = ir.FunctionType(x.type, [operand.type for operand in operands])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.{suffix}"), operands)


sqrt = instruction(_same)(lambda builder, x: _llvm(builder, "sqrt", x))
fabs = instruction(_same)(lambda builder, x: _llvm(builder, "fabs", x))
rint = instruction(_same)(lambda builder, x: _llvm(builder, "rint", x))
floor = instruction(_same)(lambda builder, x: _llvm(builder, "floor", x))
ceil = instruction(_same)(lambda builder, x: _llvm(builder, "ceil", x))
trunc = instruction(_same)(lambda builder, x: _llvm(builder, "trunc", x))
copysign = instruction(_same)(lambda builder, x, y: _llvm(builder, "copysign", x, y))


@instruction(lambda condition, a, b: _same(a, b) if condition == types.boolean else None)
def select(builder, condition, a, b):
    """Choose a where the condition holds, else b; both are computed, so loops stay free of branches."""
    return builder.select(condition, a, b)


@instruction(_same)
def sign(builder, x):
    """Return −1, +0 or 1, and NaN for NaN, as np.sign does."""
    zero, one = x.type(0.0), x.type(1.0)
    negative = builder.select(builder.fcmp_ordered("<", x, zero), x.type(-1.0), x)
    signed = builder.select(builder.fcmp_ordered("==", x, zero), zero, negative)
    return builder.select(builder.fcmp_ordered(">", x, zero), one, signed)


@instruction(_words)
def umax(builder, a, b):
    """Return the larger of two words."""
    return builder.select(builder.icmp_unsigned(">", b, a), b, a)


def _lowest(builder, bits):
    """Return a word whose lowest so many bits are set."""
    return builder.sub(builder.shl(_WORD(1), builder.trunc(bits, _WORD)), _WORD(1))


@instruction(_words)
def low(builder, pair, bits):
    """Return the first of the two elements of so many bits that a word holds, on a little-endian machine."""
    return builder.and_(pair, _lowest(builder, bits))


@instruction(_words)
def high(builder, pair, bits):
    """Return the second of the two elements of so many bits that a word holds."""
    return builder.lshr(pair, builder.trunc(bits, _WORD))


@instruction(_words)
def join(builder, a, b, bits):
    """Join the lowest so many bits of two words in one, from which `low` and `high` take them."""
    return builder.or_(builder.and_(a, _lowest(builder, bits)), builder.shl(b, builder.trunc(bits, _WORD)))


@instruction(lambda x: types.float32 if x == _word else None)
def from_bits(builder, x):
    """Return the float32 whose bits are the word's."""
    return builder.bitcast(x, ir.FloatType())


@intrinsic
def wide_vectors(typingctx):
    """Let LLVM use the processor's full vector width in this kernel, which it halves by default.

    On an AVX-512 machine the noise gets faster and rules bound by memory stay the same: see docs/decisions/0003.
    """

    def codegen(context, builder, signature, args):
        set.add(
            builder.function.attributes, '"prefer-vector-width"="512"'
        )  # llvmlite's own add knows only enum attributes
        return context.get_dummy_value()

    return types.void(), codegen


def _word_operator(function, result, build):
    """Define a Python operator of words as one LLVM instruction. One operand may be an integer, a constant mostly."""

    @type_callable(function)
    def type_operator(context):
        return lambda *operands: result if _word in operands and _words(*operands) else None

    def lower_operator(context, builder, signature, args):
        kinds = zip(args, signature.args, strict=True)
        words = [
            x if kind == _word else builder.trunc(context.cast(builder, x, kind, types.int64), _WORD)
            for x, kind in kinds
        ]
        return build(builder, *words)

    if function is operator.invert:
        lower_builtin(function, WordType)(lower_operator)
        return
    for kinds in ((WordType, WordType), (WordType, types.Integer), (types.Integer, WordType)):
        lower_builtin(function, *kinds)(lower_operator)


for _name, _method in {
    "add": "add", "sub": "sub", "mul": "mul", "xor": "xor", "and_": "and_", "or_": "or_",
    "lshift": "shl", "rshift": "lshr", "invert": "not_",
}.items():  # fmt: skip
    _word_operator(getattr(operator, _name), _word, lambda builder, *args, f=_method: getattr(builder, f)(*args))
for _name, _sign in {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}.items():
    _word_operator(
        getattr(operator, _name), types.boolean, lambda builder, *args, f=_sign: builder.icmp_unsigned(f, *args)
    )


@intrinsic
def word(typingctx, x):
    """Return the low 32 bits of an integer, the bits of a float32, or 0 or 1 for a boolean, as a word."""
    if not (isinstance(x, types.Integer | types.Boolean) or x == types.float32):
        return None

    def codegen(context, builder, signature, args):
        if x == types.float32:
            return builder.bitcast(args[0], _WORD)
        integer = context.cast(builder, args[0], signature.args[0], types.int64)
        return builder.trunc(integer, _WORD)

    return _word(x), codegen


@intrinsic
def to_float(typingctx, x, dtype):
    """Convert a word to a floating-point type, rounding to nearest."""
    if x != _word:
        return None

    def codegen(context, builder, signature, args):
        return builder.uitofp(args[0], context.get_value_type(signature.return_type))

    return dtype.instance_type(x, dtype), codegen


def _add(builder, address, amount):
    return builder.atomic_rmw("add", builder.inttoptr(address, _INT64.as_pointer()), amount, "acq_rel")


@instruction(lambda address: types.int64)
def _load_acquire(builder, address):
    return builder.load_atomic(builder.inttoptr(address, _INT64.as_pointer()), "acquire", 8)


# A job is two int64 counters, 64 bytes apart so that they do not share a cache line: the first element that nobody has
# claimed, and the number of chunks that are finished.
FINISHED_AT = 64


@intrinsic
def claim(typingctx, job, previous, chunk):
    """Report the chunk that began at `previous` as finished and claim the next; with no job (0), just go on."""

    def codegen(context, builder, signature, args):
        job, previous, chunk = args
        zero, next_chunk = _INT64(0), cgutils.alloca_once(builder, _INT64)
        with builder.if_else(builder.icmp_signed("==", job, zero)) as (alone, shared):
            with alone:
                builder.store(builder.add(previous, chunk), next_chunk)
            with shared:
                with builder.if_then(builder.icmp_signed(">=", previous, zero)):
                    _add(builder, builder.add(job, _INT64(FINISHED_AT)), _INT64(1))
                builder.store(_add(builder, job, chunk), next_chunk)
        return builder.load(next_chunk)

    return types.int64(types.int64, types.int64, types.int64), codegen


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


@njit
def finished(job):
    """Return the number of chunks of the job that are finished; what was written to them can then be read."""
    return _load_acquire(job + FINISHED_AT)


_MODE = {"x86_64": 0xE040, "amd64": 0xE040, "aarch64": 0x1C80007, "arm64": 0x1C80007}.get(platform.machine().lower(), 0)
"""The bits of MXCSR or FPCR that change results: rounding, and what becomes of subnormal numbers. 0 is IEEE 754."""


@intrinsic
def standard_mode(typingctx):
    """Round to nearest and keep subnormal numbers, whatever this thread does; return what `restore_mode` takes.

    The mode is a thread's: a library built with -ffast-math changes the caller's, not that of threads that are there.
    """

    def codegen(context, builder, signature, args):
        mode = _read_mode(builder)
        changed = builder.and_(mode, ir.Constant(_INT64, _MODE))
        with builder.if_then(builder.icmp_unsigned("!=", changed, ir.Constant(_INT64, 0)), likely=False):
            _write_mode(builder, builder.and_(mode, ir.Constant(_INT64, ~_MODE)))
        return mode

    return types.int64(), codegen


@intrinsic
def restore_mode(typingctx, mode):
    """Go back to a mode that `standard_mode` found."""

    def codegen(context, builder, signature, args):
        changed = builder.and_(args[0], ir.Constant(_INT64, _MODE))
        with builder.if_then(builder.icmp_unsigned("!=", changed, ir.Constant(_INT64, 0)), likely=False):
            _write_mode(builder, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


def _read_mode(builder):
    if not _MODE:
        return ir.Constant(_INT64, 0)
    if _MODE != 0xE040:
        kind = ir.FunctionType(_INT64, [])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.aarch64.get.fpcr"), [])
    memory = cgutils.alloca_once(builder, _WORD)
    kind = ir.FunctionType(ir.VoidType(), [_BYTE.as_pointer()])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse.stmxcsr")
    builder.call(function, [builder.bitcast(memory, _BYTE.as_pointer())])
    return builder.zext(builder.load(memory), _INT64)


def _write_mode(builder, mode):
    if _MODE != 0xE040:
        kind = ir.FunctionType(ir.VoidType(), [_INT64])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.aarch64.set.fpcr"), [mode])
        return
    memory = cgutils.alloca_once(builder, _WORD)
    builder.store(builder.trunc(mode, _WORD), memory)
    kind = ir.FunctionType(ir.VoidType(), [_BYTE.as_pointer()])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse.ldmxcsr")
    builder.call(function, [builder.bitcast(memory, _BYTE.as_pointer())])


@intrinsic
def yield_thread(typingctx):
    """Yield this thread's core to another that waits for one."""

    def codegen(context, builder, signature, args):
        name = "SwitchToThread" if sys.platform == "win32" else "sched_yield"
        builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(_WORD, []), name), [])
        return context.get_dummy_value()

    return types.void(), codegen
