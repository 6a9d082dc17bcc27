"""A vector register as a Numba type: 64 bytes, 16 float32 or 8 float64, with the few operations the kernels need.

LLVM's own vectoriser stops at 256 bits on most CPUs that have 512, and cannot see through ``exp``. Kernels written
with this type say what they mean: ``u = fma(a, load(x, i), b)`` is one instruction on a CPU with AVX-512, two with
AVX2, four with NEON. Nothing here depends on the CPU but four functions (:func:`exp2`, :func:`reciprocal`,
:func:`mantissa`, :func:`exponent`), which use AVX-512 instructions where they exist and portable arithmetic where
not.

Inside compiled code only::

    v = load(array, i)                     # array[i : i + lanes]; store(array, i, v) puts it back
    splat(x)                               # every lane x; the type of x chooses the vector's
    v + w, v - w, v * w, v / w             # by lane; so are <, >, == (giving a mask), minimum, maximum
    fma(a, b, c)                           # a b + c
    where(mask, v, w), any_lane(mask)
    total(v), product(v)                   # float64 sum, product over lanes; the order is fixed
    r = registers(v)                       # vectors r[0], r[1], … that LLVM keeps in registers where loops over them
                                           # have constant length
    totals(r, i)                           # sums over lanes of r[i], r[i + 1], … as one vector
"""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.extending import intrinsic, models, register_model
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature

from gmmcnn.hardware.compiled import target_features

VECTOR_BYTES = 64
"""Arrays that hold vectors are aligned to this and padded to a multiple of it."""


def lanes(dtype: Any) -> int:
    """Numbers in one vector."""
    return VECTOR_BYTES // np.dtype(dtype).itemsize


def aligned_empty(size: int, dtype: Any) -> np.ndarray:
    """Uninitialised flat array whose first element lies on a vector boundary."""
    dtype = np.dtype(dtype)
    raw = np.empty(size * dtype.itemsize + VECTOR_BYTES, dtype=np.uint8)
    start = -raw.ctypes.data % VECTOR_BYTES
    return raw[start : start + size * dtype.itemsize].view(dtype)


class Vector(types.Type):
    """Numba type of a vector of float32 or float64."""

    def __init__(self, element: types.Float) -> None:
        self.element = element
        self.lanes = VECTOR_BYTES * 8 // element.bitwidth
        super().__init__(name=f"Vector({element} x {self.lanes})")


class Mask(types.Type):
    """Numba type of one truth value a lane."""

    def __init__(self, n_lanes: int) -> None:
        self.lanes = n_lanes
        super().__init__(name=f"Mask({n_lanes})")


class Registers(types.Type):
    """Numba type of a short array of vectors on the stack."""

    def __init__(self, vector: Vector) -> None:
        self.vector = vector
        super().__init__(name=f"Registers({vector})")


def _llvm(vector: Vector) -> ir.VectorType:
    return ir.VectorType(ir.FloatType() if vector.element == types.float32 else ir.DoubleType(), vector.lanes)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Vector) -> None:
        super().__init__(dmm, fe_type, _llvm(fe_type))


@register_model(Mask)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Mask) -> None:
        super().__init__(dmm, fe_type, ir.VectorType(ir.IntType(1), fe_type.lanes))


@register_model(Registers)
class _RegistersModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Registers) -> None:
        super().__init__(dmm, fe_type, ir.IntType(8).as_pointer())


def _call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    """Call an LLVM intrinsic."""
    function_type = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), arguments)


def _suffix(vector: Vector) -> str:
    return f"v{vector.lanes}f{vector.element.bitwidth}"


def _splat(builder: Any, scalar: Any, n_lanes: int) -> Any:
    kind = ir.VectorType(scalar.type, n_lanes)
    single = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), n_lanes), [0] * n_lanes)
    return builder.shuffle_vector(single, ir.Constant(kind, ir.Undefined), zeros)


def _constant(vector: Vector, value: float) -> Any:
    kind = _llvm(vector)
    return ir.Constant(kind, [value] * vector.lanes)


def _has_avx512(context: Any) -> bool:
    return {"+avx512f", "+avx512dq"} <= target_features(context)


# --- memory ---


@intrinsic
def lanes_of(typingctx: Any, array: Any) -> Any:
    """Numbers of the array's dtype in one vector: a constant, where an array's ``itemsize`` is none for LLVM."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return context.get_constant(types.intp, Vector(array.dtype).lanes)

    return types.intp(array), codegen


def _pointer(context: Any, builder: Any, vector: Vector, array_type: Any, array: Any, index: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index], inbounds=True), _llvm(vector).as_pointer())


@intrinsic
def load(typingctx: Any, array: Any, index: Any) -> Any:
    """``array[index : index + lanes]`` of a flat contiguous array."""
    vector = Vector(array.dtype)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, vector, sig.args[0], *args)
        return builder.load(pointer, align=vector.element.bitwidth // 8)

    return vector(array, types.intp), codegen


@intrinsic
def load_all(typingctx: Any, array: Any, index: Any) -> Any:
    """A vector with the element at ``index``, which must not be negative, in every lane."""
    vector = Vector(array.dtype)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        return _splat(builder, builder.load(builder.gep(data, [args[1]], inbounds=True)), vector.lanes)

    return vector(array, types.intp), codegen


@intrinsic
def store(typingctx: Any, array: Any, index: Any, vector: Any) -> Any:
    """Write a vector to ``array[index : index + lanes]``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, vector, sig.args[0], args[0], args[1])
        builder.store(args[2], pointer, align=vector.element.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), codegen


@intrinsic
def load_first(typingctx: Any, array: Any, index: Any, count: Any) -> Any:
    """``array[index : index + count]``, and zeros in the lanes from ``count`` on; nothing beyond is touched."""
    vector = Vector(array.dtype)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, vector, sig.args[0], *args[:2])
        numbers = ir.Constant(ir.VectorType(ir.IntType(64), vector.lanes), list(range(vector.lanes)))
        mask = builder.icmp_signed("<", numbers, _splat(builder, args[2], vector.lanes))
        align = ir.Constant(ir.IntType(32), vector.element.bitwidth // 8)
        name = f"llvm.masked.load.{_suffix(vector)}.p0"
        return _call(builder, name, _llvm(vector), pointer, align, mask, _constant(vector, 0.0))

    return vector(array, types.intp, types.intp), codegen


@intrinsic
def prefetch(typingctx: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line of ``array[index]``, which will be read soon."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, Vector(array.dtype), sig.args[0], *args)
        read, close, data = (ir.Constant(ir.IntType(32), value) for value in (0, 3, 1))
        line = builder.bitcast(pointer, ir.IntType(8).as_pointer())
        _call(builder, "llvm.prefetch.p0", ir.VoidType(), line, read, close, data)
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


_MAX_REGISTERS = 48


@intrinsic
def registers(typingctx: Any, vector: Any) -> Any:
    """An uninitialised array of vectors like the given one, on the stack."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        array = cgutils.alloca_once(builder, ir.ArrayType(_llvm(vector), _MAX_REGISTERS))
        return builder.bitcast(array, ir.IntType(8).as_pointer())

    return Registers(vector)(vector), codegen


@infer_global(operator.getitem)
class _RegistersGet(AbstractTemplate):
    def generic(self, args: Any, kws: Any) -> Any:
        if isinstance(args[0], Registers):
            return signature(args[0].vector, args[0], types.intp)
        return None


@infer_global(operator.setitem)
class _RegistersSet(AbstractTemplate):
    def generic(self, args: Any, kws: Any) -> Any:
        if isinstance(args[0], Registers):
            return signature(types.void, args[0], types.intp, args[0].vector)
        return None


def _register(builder: Any, kind: Registers, array: Any, index: Any) -> Any:
    return builder.gep(builder.bitcast(array, _llvm(kind.vector).as_pointer()), [index], inbounds=True)


@lower_builtin(operator.getitem, Registers, types.Integer)
def _registers_get(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return builder.load(_register(builder, sig.args[0], *args[:2]), align=VECTOR_BYTES)


@lower_builtin(operator.setitem, Registers, types.Integer, Vector)
def _registers_set(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    builder.store(args[2], _register(builder, sig.args[0], *args[:2]), align=VECTOR_BYTES)


# --- arithmetic by lane ---


@intrinsic
def splat(typingctx: Any, value: Any) -> Any:
    """A vector with the same number in every lane."""
    vector = Vector(value)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _splat(builder, args[0], vector.lanes)

    return vector(value), codegen


def _define_operator(function: Callable, emit: Callable, result: Callable[[Vector], types.Type]) -> None:
    @infer_global(function)
    class _Typing(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            if len(args) == 2 and isinstance(args[0], Vector) and args[0] == args[1]:
                return signature(result(args[0]), *args)
            return None

    @lower_builtin(function, Vector, Vector)
    def _lowering(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return emit(builder, *args)


def _ordered(symbol: str) -> Callable:
    return lambda builder, a, b: builder.fcmp_ordered(symbol, a, b)


for _function, _emit in {
    operator.add: lambda builder, a, b: builder.fadd(a, b),
    operator.sub: lambda builder, a, b: builder.fsub(a, b),
    operator.mul: lambda builder, a, b: builder.fmul(a, b),
    operator.truediv: lambda builder, a, b: builder.fdiv(a, b),
}.items():
    _define_operator(_function, _emit, lambda vector: vector)
for _function, _symbol in {operator.lt: "<", operator.gt: ">", operator.eq: "=="}.items():
    _define_operator(_function, _ordered(_symbol), lambda vector: Mask(vector.lanes))


@intrinsic
def fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c``, rounded once."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _call(builder, f"llvm.fma.{_suffix(a)}", _llvm(a), *args)

    return a(a, a, a), codegen


@intrinsic
def fnma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """``c - a * b``, rounded once."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _call(builder, f"llvm.fma.{_suffix(a)}", _llvm(a), builder.fneg(args[0]), args[1], args[2])

    return a(a, a, a), codegen


@intrinsic
def minimum(typingctx: Any, a: Any, b: Any) -> Any:
    """Smaller of two numbers in each lane."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<", *args), *args)

    return a(a, a), codegen


@intrinsic
def maximum(typingctx: Any, a: Any, b: Any) -> Any:
    """Larger of two numbers in each lane."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return a(a, a), codegen


@intrinsic
def where(typingctx: Any, mask: Any, a: Any, b: Any) -> Any:
    """``a`` in the lanes where the mask holds, else ``b``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(*args)

    return a(mask, a, a), codegen


@intrinsic
def any_lane(typingctx: Any, mask: Any) -> Any:
    """Whether the mask holds in any lane."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = builder.bitcast(args[0], ir.IntType(mask.lanes))
        return builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))

    return types.boolean(mask), codegen


@intrinsic
def lane_numbers(typingctx: Any, like: Any) -> Any:
    """0, 1, 2, … in the lanes of a vector like the given one."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return ir.Constant(_llvm(like), [float(i) for i in range(like.lanes)])

    return like(like), codegen


# --- over lanes ---


def _reduce(builder: Any, operation: str, start: float, wide: Any) -> Any:
    """Reduce <n x double> in an order that LLVM may choose for the CPU, once and for all calls."""
    function_type = ir.FunctionType(ir.DoubleType(), [ir.DoubleType(), wide.type])
    name = f"llvm.vector.reduce.{operation}.v{wide.type.count}f64"
    function = cgutils.get_or_insert_function(builder.module, function_type, name)
    return builder.call(function, [ir.Constant(ir.DoubleType(), start), wide], fastmath=("reassoc",))


def _widened(builder: Any, vector: Vector, value: Any) -> Any:
    if vector.element == types.float64:
        return value
    return builder.fpext(value, ir.VectorType(ir.DoubleType(), vector.lanes))


@intrinsic
def total(typingctx: Any, vector: Any) -> Any:
    """Sum over lanes in float64."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _reduce(builder, "fadd", 0.0, _widened(builder, vector, args[0]))

    return types.float64(vector), codegen


@intrinsic
def product(typingctx: Any, vector: Any) -> Any:
    """Product over lanes in float64."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _reduce(builder, "fmul", 1.0, _widened(builder, vector, args[0]))

    return types.float64(vector), codegen


@intrinsic
def totals(typingctx: Any, registers: Any, first: Any) -> Any:
    """A vector of the sums over lanes of as many registers as there are lanes, from ``first`` on, in their precision.

    By halves: two vectors become one that holds sums of pairs of lanes of both, until one vector is left.
    """
    vector = registers.vector

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        def register(i: int) -> Any:
            index = builder.add(args[1], ir.Constant(args[1].type, i))
            return builder.load(_register(builder, sig.args[0], args[0], index), align=VECTOR_BYTES)

        vectors, group = [register(i) for i in range(vector.lanes)], vector.lanes
        while len(vectors) > 1:
            vectors = [_halves_added(builder, a, b, group) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
            group //= 2
        return vectors[0]

    return vector(registers, types.intp), codegen


def _halves_added(builder: Any, a: Any, b: Any, group: int) -> Any:
    """In every group of lanes of a, then of b, the first half plus the second."""
    lower = [lane for lane in range(2 * a.type.count) if lane % group < group // 2]
    kind = ir.VectorType(ir.IntType(32), a.type.count)
    upper = [lane + group // 2 for lane in lower]
    return builder.fadd(*(builder.shuffle_vector(a, b, ir.Constant(kind, lanes)) for lanes in (lower, upper)))


# --- exponential and logarithm ---

_EXP2_COEFFICIENTS = {
    32: (0.999999925065699, 0.693153073270949, 0.240153616402813, 0.0558263198192342, 0.00898933807493338,
    0.00187757749776928), 64: ( 1.0, 0.69314718055994623489, 0.24022650695905470278, 0.055504108665711288541,
    0.009618129098791583479, 0.0013333558661618544444, 0.00015403511445384256236, 1.525319026728251977e-05,
    1.3208193297563443936e-06, 1.0254458701912627911e-07, 6.554452175436055309e-09, 6.2724425682141889546e-10, ),
}  # fmt: skip
"""2^f on 0 ≤ f < 1, lowest power first: minimax, relative error 7.5e-8 and 3e-18 before rounding."""

_NO_EXCEPTIONS_CURRENT_ROUNDING = 4
_REDUCE_BY_FLOOR = 0b1001
_MANTISSA_IN_1_2 = 0


def _avx512(builder: Any, name: str, vector: Vector, *arguments: Any, rounding: bool = True) -> Any:
    """Call ``llvm.x86.avx512.NAME`` unmasked; arguments are followed by pass-through, mask and rounding."""
    kind, element = _llvm(vector), "ps" if vector.element == types.float32 else "pd"
    everywhere = ir.Constant(ir.IntType(vector.lanes), -1)
    tail = [ir.Constant(kind, ir.Undefined), everywhere]
    if rounding:
        tail.append(ir.Constant(ir.IntType(32), _NO_EXCEPTIONS_CURRENT_ROUNDING))
    return _call(builder, f"llvm.x86.avx512.{name}.{element}.512", kind, *arguments, *tail)


def _integers(vector: Vector) -> ir.VectorType:
    return ir.VectorType(ir.IntType(vector.element.bitwidth), vector.lanes)


def _integer_constant(vector: Vector, value: int) -> Any:
    return ir.Constant(_integers(vector), [value] * vector.lanes)


_FRACTION_BITS = {32: 23, 64: 52}
_EXPONENT_BIAS = {32: 127, 64: 1023}


@intrinsic
def exp2(typingctx: Any, x: Any) -> Any:
    """2^x for x below the largest exponent; 0 for x below the smallest, -inf included."""
    width = x.element.bitwidth

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = _llvm(x)
        if _has_avx512(context):
            fraction = _avx512(builder, "mask.reduce", x, args[0], ir.Constant(ir.IntType(32), _REDUCE_BY_FLOOR))
            return _avx512(builder, "mask.scalef", x, _polynomial(builder, x, fraction), args[0])
        smallest = _constant(x, 1.0 - _EXPONENT_BIAS[width])
        vanishes = builder.fcmp_ordered("<", args[0], smallest)
        argument = builder.select(vanishes, smallest, args[0])
        whole = _call(builder, f"llvm.floor.{_suffix(x)}", kind, argument)
        mantissa_ = _polynomial(builder, x, builder.fsub(argument, whole))
        biased = builder.add(builder.fptosi(whole, _integers(x)), _integer_constant(x, _EXPONENT_BIAS[width]))
        power = builder.bitcast(builder.shl(biased, _integer_constant(x, _FRACTION_BITS[width])), kind)
        return builder.select(vanishes, _constant(x, 0.0), builder.fmul(mantissa_, power))

    return x(x), codegen


def _polynomial(builder: Any, vector: Vector, x: Any) -> Any:
    highest, *others = [_constant(vector, c) for c in reversed(_EXP2_COEFFICIENTS[vector.element.bitwidth])]
    value = highest
    for coefficient in others:
        value = _call(builder, f"llvm.fma.{_suffix(vector)}", _llvm(vector), value, x, coefficient)
    return value


@intrinsic
def reciprocal(typingctx: Any, x: Any) -> Any:
    """1 / x of positive normal numbers, to within two units in the last place."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind, one = _llvm(x), _constant(x, 1.0)
        if x.element == types.float64 or not _has_avx512(context):
            return builder.fdiv(one, args[0])
        guess = _avx512(builder, "rcp14", x, args[0], rounding=False)
        error = _call(builder, f"llvm.fma.{_suffix(x)}", kind, builder.fneg(args[0]), guess, one)
        return _call(builder, f"llvm.fma.{_suffix(x)}", kind, guess, error, guess)

    return x(x), codegen


@intrinsic
def mantissa(typingctx: Any, x: Any) -> Any:
    """M of x = m 2^e with 1 ≤ m < 2, for positive normal numbers."""
    width = x.element.bitwidth

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if _has_avx512(context):
            return _avx512(builder, "mask.getmant", x, args[0], ir.Constant(ir.IntType(32), _MANTISSA_IN_1_2))
        bits = builder.bitcast(args[0], _integers(x))
        fraction = builder.and_(bits, _integer_constant(x, (1 << _FRACTION_BITS[width]) - 1))
        one = _integer_constant(x, _EXPONENT_BIAS[width] << _FRACTION_BITS[width])
        return builder.bitcast(builder.or_(fraction, one), _llvm(x))

    return x(x), codegen


@intrinsic
def exponent(typingctx: Any, x: Any) -> Any:
    """E of x = m 2^e with 1 ≤ m < 2, for positive normal numbers, as a floating-point number."""
    width = x.element.bitwidth

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if _has_avx512(context):
            return _avx512(builder, "mask.getexp", x, args[0])
        bits = builder.bitcast(args[0], _integers(x))
        biased = builder.lshr(bits, _integer_constant(x, _FRACTION_BITS[width]))
        return builder.sitofp(builder.sub(biased, _integer_constant(x, _EXPONENT_BIAS[width])), _llvm(x))

    return x(x), codegen


# --- numbers too small to be normal ---

_FLUSH_TO_ZERO, _DENORMALS_ARE_ZERO = 1 << 15, 1 << 6


def _exchange_mode(context: Any, builder: Any, new: Callable[[Any], Any]) -> Any:
    """Replace the control word of the SSE unit; return what it was. On other processors there is none: 0."""
    if "+sse" not in target_features(context):
        return ir.Constant(ir.IntType(32), 0)
    word = cgutils.alloca_once(builder, ir.IntType(32))
    _call(builder, "llvm.x86.sse.stmxcsr", ir.VoidType(), word)
    old = builder.load(word)
    builder.store(new(old), word)
    _call(builder, "llvm.x86.sse.ldmxcsr", ir.VoidType(), word)
    return old


@intrinsic
def flush_denormals(typingctx: Any) -> Any:
    """Let this thread treat denormal numbers as 0, which spares it a hundred cycles for each; return the mode before.

    Densities far from a component underflow all the time.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        mode = ir.Constant(ir.IntType(32), _FLUSH_TO_ZERO | _DENORMALS_ARE_ZERO)
        return _exchange_mode(context, builder, lambda old: builder.or_(old, mode))

    return types.int32(), codegen


@intrinsic
def restore_mode(typingctx: Any, mode: Any) -> Any:
    """Undo :func:`flush_denormals`, given what it returned."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _exchange_mode(context, builder, lambda old: args[0])
        return context.get_dummy_value()

    return types.void(types.int32), codegen
