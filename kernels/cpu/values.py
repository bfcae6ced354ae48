"""Values of printed CPU kernels: 32-bit words and vectors, with operators and exact operations.

Numba widens the arithmetic of its uint32 to 64 bits, and LLVM then vectorises it at a quarter of the width. A word is a
uint32 that stays one. A vector is `LANES` values, as many as a register of the processor holds: what is printed for
one value is computed for all of them at once, and does not depend on what LLVM recognises in a loop.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import inspect
import operator
from typing import ClassVar

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features
from numba.core.typing.templates import AbstractTemplate, infer, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

_I32 = ir.IntType(32)


class WordType(types.Type):
    """The type of an unsigned 32-bit integer with wrap-around arithmetic."""

    def __init__(self):
        super().__init__(name="word")


WORD = WordType()


@register_model(WordType)
class _WordModel(models.PrimitiveModel):
    def __init__(self, manager, fe_type):
        super().__init__(manager, fe_type, _I32)


class VectorType(types.Type):
    """The type of `LANES` values at once: floats, words or booleans."""

    def __init__(self, element: types.Type):
        self.element = element
        super().__init__(name=f"vector({element})")


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, fe_type):
        flag = fe_type.element == types.boolean
        element = ir.IntType(1) if flag else manager[fe_type.element].get_value_type()
        super().__init__(manager, fe_type, ir.VectorType(element, LANES))


def _lanes() -> int:
    """Return how many 32-bit values the vector registers hold of the processor that Numba compiles for."""
    features = numba.config.CPU_FEATURES  # type: ignore[attr-defined]
    features = get_host_cpu_features() if features is None else features
    return 16 if "+avx512f" in features else 8 if "+avx2" in features else 4


LANES = _lanes()


def instruction(result):
    """Make an intrinsic of a function of LLVM's builder and values.

    `result` returns its type and those of its operands, to which these are converted, or None.
    """

    def define(build):
        def definition(typingctx, *operands):
            kinds = result(*operands)
            if kinds is None:
                return None
            kind, wanted = kinds

            def codegen(context, builder, signature, args):
                given = zip(args, signature.args, wanted, strict=True)
                return build(builder, *(converted(context, builder, *x) for x in given))

            return kind(*operands), codegen

        definition.__name__, definition.__signature__ = build.__name__, inspect.signature(build)
        return intrinsic(definition)

    return define


def _element(kind):
    """Return the type of one element of a type, or itself; integers are words here."""
    if isinstance(kind, VectorType):
        return kind.element
    return WORD if isinstance(kind, types.Integer) else types.boolean if isinstance(kind, types.Boolean) else kind


def _like(element, *operands):
    """Return the type of so many elements of a type as these operands have, one or `LANES`."""
    return VectorType(element) if any(isinstance(x, VectorType) for x in operands) else element


def _common(*operands):
    """Return the type that operands have in common, each one value or `LANES`; or None."""
    first, *others = map(_element, operands)
    return _like(first, *operands) if all(x == first for x in others) else None


def _same(*operands):
    kind = _common(*operands)
    return None if kind is None else (kind, [kind] * len(operands))


def _words(*operands):
    kinds = _same(*operands)
    return kinds if kinds and _element(kinds[0]) == WORD else None


def converted(context, builder, value, given, wanted):
    """Convert an operand: an integer to a word, one value to as many as a vector has."""
    if isinstance(given, types.Integer) and wanted in (WORD, VectorType(WORD)):
        value = builder.trunc(context.cast(builder, value, given, types.int64), _I32)
    if isinstance(wanted, VectorType) and not isinstance(given, VectorType):
        none = ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined)
        one = builder.insert_element(none, value, _I32(0))
        value = builder.shuffle_vector(one, none, number(ir.VectorType(_I32, LANES), 0))
    return value


def number(kind, x):
    """Return a constant of an LLVM type, in each lane of a vector."""
    return ir.Constant(kind, [x] * kind.count if isinstance(kind, ir.VectorType) else x)


def _llvm(builder, name, x, *more):
    """Call the LLVM intrinsic of that name: exact or correctly rounded, vectorised."""
    operands, lanes = [x, *more], isinstance(x.type, ir.VectorType)
    element = x.type.element if lanes else x.type
    suffix = (f"v{x.type.count}" if lanes else "") + ("f32" if element == ir.FloatType() else "f64")
    kind = ir.FunctionType(x.type, [operand.type for operand in operands])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.{suffix}"), operands)


sqrt = instruction(_same)(lambda builder, x: _llvm(builder, "sqrt", x))
fabs = instruction(_same)(lambda builder, x: _llvm(builder, "fabs", x))
rint = instruction(_same)(lambda builder, x: _llvm(builder, "rint", x))
floor = instruction(_same)(lambda builder, x: _llvm(builder, "floor", x))
ceil = instruction(_same)(lambda builder, x: _llvm(builder, "ceil", x))
trunc = instruction(_same)(lambda builder, x: _llvm(builder, "trunc", x))


@instruction(_same)
def copysign(builder, x, y):
    """Return x with the sign of y: with AVX2 a choice by that sign, in one instruction where x is always the same."""
    if LANES != 8 or x.type != ir.VectorType(ir.FloatType(), LANES):
        return _llvm(builder, "copysign", x, y)
    negative = builder.icmp_signed("<", builder.bitcast(y, _retyped(y.type, _I32)), number(_retyped(y.type, _I32), 0))
    size = _llvm(builder, "fabs", x)
    return builder.select(negative, builder.fneg(size), size)


def _chosen(condition, a, b):
    kind = _common(a, b)
    if kind is None or _element(condition) != types.boolean:
        return None
    kind = _like(_element(kind), condition, a, b)
    return kind, [_like(types.boolean, kind), kind, kind]


@instruction(_chosen)
def select(builder, condition, a, b):
    """Choose a where the condition holds, else b; both are computed, so loops stay free of branches."""
    return builder.select(condition, a, b)


@instruction(_same)
def sign(builder, x):
    """Return −1, +0 or 1, and NaN for NaN, as np.sign does."""
    zero, one = number(x.type, 0.0), number(x.type, 1.0)
    negative = builder.select(builder.fcmp_ordered("<", x, zero), number(x.type, -1.0), x)
    signed = builder.select(builder.fcmp_ordered("==", x, zero), zero, negative)
    return builder.select(builder.fcmp_ordered(">", x, zero), one, signed)


def larger(builder, a, b):
    """Return the larger of two words."""
    return builder.select(builder.icmp_unsigned(">", b, a), b, a)


umax = instruction(_words)(larger)


def larger_halves(builder, a, b, mask):
    """Return for each half of words the larger one of a's and of b's, of which only the bits of a mask count."""
    halves = ir.VectorType(ir.IntType(16), 2 * a.type.count)
    x, y = builder.bitcast(a, halves), builder.and_(builder.bitcast(b, halves), number(halves, mask))
    return builder.bitcast(larger(builder, x, y), a.type)


def added_halves(builder, a, b):
    """Return the sums of words of 16 bits, which have as many."""
    if not isinstance(a.type, ir.VectorType):
        return builder.and_(builder.add(a, b), number(a.type, 0xFFFF))
    halves = ir.VectorType(ir.IntType(16), 2 * a.type.count)
    return builder.bitcast(builder.add(builder.bitcast(a, halves), builder.bitcast(b, halves)), a.type)


add_halves = instruction(_words)(added_halves)


def _pair(*operands):
    """Return the type of words and of the number of bits that follows them."""
    kinds = _words(*operands[:-1])
    return kinds and (kinds[0], [*kinds[1], _like(WORD, kinds[0])])


def _lowest(builder, bits):
    """Return a word whose lowest so many bits are set."""
    return builder.sub(builder.shl(number(bits.type, 1), bits), number(bits.type, 1))


def lower(builder, pair, bits):
    """Return the first of the two elements of so many bits that a word holds, on a little-endian machine."""
    return builder.and_(pair, _lowest(builder, bits))


def upper(builder, pair, bits):
    """Return the second of the two elements of so many bits that a word holds."""
    return builder.lshr(pair, bits)


def lower_signed(builder, pair, bits):
    """Return the first of two elements that have a sign."""
    others = builder.sub(number(bits.type, 32), bits)
    return builder.ashr(builder.shl(pair, others), others)


def upper_signed(builder, pair, bits):
    """Return the second of two elements that have a sign, which then is the word's."""
    return builder.ashr(pair, bits)


def joined(builder, a, b, bits):
    """Join the lowest so many bits of two words in one, from which `low` and `high` take them."""
    return builder.or_(builder.and_(a, _lowest(builder, bits)), builder.shl(b, bits))


low, high, join = (instruction(_pair)(function) for function in (lower, upper, joined))


@instruction(lambda x: (_like(types.float32, x), [x]) if _element(x) == WORD else None)
def from_bits(builder, x):
    """Return the float32 whose bits are the word's."""
    return builder.bitcast(x, _retyped(x.type, ir.FloatType()))


def _retyped(kind, element):
    """Return an LLVM type of as many elements as another."""
    return ir.VectorType(element, kind.count) if isinstance(kind, ir.VectorType) else element


def typed_first(function):
    """Define the type of what a Python operator returns, to be asked for before all that Numba itself knows of it.

    What is decorated takes the types of the operands, and returns that of the result, or None.
    """

    def define(typer):
        class Template(AbstractTemplate):
            key = function
            metadata: ClassVar = {"target": "cpu"}  # which is more specific than Numba's "generic"

            def generic(self, args, kws):
                kind = typer(*args)
                return None if kind is None else signature(kind, *args)

        infer(Template)
        infer_global(function, types.Function(Template))
        return typer

    return define


def _operator(function, elements, build, result=None):
    """Define a Python operator as one LLVM instruction, of words, of vectors, and of one of these and numbers."""

    def kinds(*operands):
        if not any(x == WORD or isinstance(x, VectorType) for x in operands):
            return None  # Numba's own
        kind = _common(*operands)
        return kind if kind is not None and _element(kind) in elements else None

    @typed_first(function)
    def type_operator(*operands):
        kind = kinds(*operands)
        return kind if kind is None or result is None else _like(result, kind)

    def lower_operator(context, builder, signature, args):
        kind = kinds(*signature.args)
        given = zip(args, signature.args, strict=True)
        return build(builder, _element(kind), *(converted(context, builder, x, own, kind) for x, own in given))

    own = (WordType, VectorType)
    if function in (operator.invert, operator.not_, operator.neg):
        signatures = [(kind,) for kind in own]
    else:
        others = (*own, types.Number, types.Boolean)
        signatures = [(a, b) for a in others for b in others if a in own or b in own]
    for kinds_of_operands in signatures:
        lower_builtin(function, *kinds_of_operands)(lower_operator)


_FLOATS, _BITS = (types.float32, types.float64), (WORD, types.boolean)
for _name, _floats, _bits in (
    ("add", "fadd", "add"), ("sub", "fsub", "sub"), ("mul", "fmul", "mul"), ("truediv", "fdiv", None),
):  # fmt: skip
    _operator(
        getattr(operator, _name), (*_FLOATS, *([WORD] if _bits else [])),
        lambda builder, element, *args, f=_floats, w=_bits: getattr(builder, w if element == WORD else f)(*args),
    )  # fmt: skip
for _name, _method in {"lshift": "shl", "rshift": "lshr"}.items():
    _operator(getattr(operator, _name), (WORD,), lambda builder, element, *args, f=_method: getattr(builder, f)(*args))
for _name, _method in {"xor": "xor", "and_": "and_", "or_": "or_", "invert": "not_", "not_": "not_"}.items():
    _operator(getattr(operator, _name), _BITS, lambda builder, element, *args, f=_method: getattr(builder, f)(*args))
_operator(operator.neg, _FLOATS, lambda builder, element, x: builder.fneg(x))


def _compare(builder, element, a, b, sign):
    if element in _BITS:
        return builder.icmp_unsigned(sign, a, b)
    return builder.fcmp_unordered(sign, a, b) if sign == "!=" else builder.fcmp_ordered(sign, a, b)


for _name, _sign in {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}.items():
    _operator(
        getattr(operator, _name), (*_FLOATS, *_BITS),
        lambda builder, element, a, b, f=_sign: _compare(builder, element, a, b, f), types.boolean,
    )  # fmt: skip


@intrinsic
def word(typingctx, x):
    """Return the low 32 bits of an integer, the bits of a float32, or 0 or 1 for a boolean, as a word."""
    element = x.element if isinstance(x, VectorType) else x
    if not (isinstance(element, types.Integer | types.Boolean) or element == types.float32):
        return None

    def codegen(context, builder, signature, args):
        if element == types.float32:
            return builder.bitcast(args[0], _retyped(args[0].type, _I32))
        if isinstance(x, VectorType):
            return builder.zext(args[0], _retyped(args[0].type, _I32))
        integer = context.cast(builder, args[0], signature.args[0], types.int64)
        return builder.trunc(integer, _I32)

    return _like(WORD, x)(x), codegen


@instruction(_words)
def signed(builder, x):
    """Return the number in the lowest 8 bits of a word, which has a sign, as a word."""
    return builder.sext(builder.trunc(x, _retyped(x.type, ir.IntType(8))), x.type)


@intrinsic
def to_float(typingctx, x, dtype):
    """Convert a word to a floating-point type, rounding to nearest, or a float32 to a float64."""
    if _element(x) not in (WORD, types.float32):
        return None

    def codegen(context, builder, signature, args):
        wanted = _retyped(args[0].type, context.get_value_type(dtype.instance_type))
        return builder.uitofp(args[0], wanted) if _element(x) == WORD else builder.fpext(args[0], wanted)

    return _like(dtype.instance_type, x)(x, dtype), codegen


@instruction(lambda x: (VectorType(_element(x)), [VectorType(_element(x))]))
def each(builder, x):
    """Return a vector with the same value in each lane."""
    return x


@instruction(lambda first, step: (VectorType(WORD), [VectorType(WORD)] * 2) if _words(first, step) else None)
def ramp(builder, first, step):
    """Return `first` and what comes after it in steps, a vector of words."""
    return builder.add(first, builder.mul(step, ir.Constant(first.type, list(range(LANES)))))


@instruction(lambda x: (WORD, [x]) if x == VectorType(WORD) else None)
def top(builder, x):
    """Return the largest word of a vector."""
    return _largest(builder, x)


def anywhere(builder, conditions):
    """Return whether any of a vector's conditions holds."""
    flags = ir.IntType(conditions.type.count)
    return builder.icmp_unsigned("!=", builder.bitcast(conditions, flags), flags(0))


@intrinsic(prefer_literal=True)
def any_half_above(typingctx, x, limit):
    """Whether any half of a word of a vector is larger."""

    def codegen(context, builder, signature, args):
        halves = builder.bitcast(args[0], ir.VectorType(ir.IntType(16), 2 * LANES))
        return anywhere(builder, builder.icmp_unsigned(">", halves, number(halves.type, limit.literal_value)))

    return types.boolean(x, limit), codegen


def _largest(builder, x):
    """Return the largest of a vector's elements."""
    kind = ir.FunctionType(x.type.element, [x.type])
    name = f"llvm.vector.reduce.umax.v{x.type.count}i{x.type.element.width}"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [x])
