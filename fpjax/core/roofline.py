"""What a compiled program reads, writes and computes, from its optimised HLO, and the least time that a device needs.

XLA counts nothing for CUDA, so this reads the text: each instruction of the program's longest part is one kernel, which
reads its operands and writes its results once. The bound is the sum over kernels of whichever is longer, their
arithmetic at the device's peak or their bytes at its bandwidth (Williams et al. 2009, doi:10.1145/1498765.1498785). It
is no measurement: launches, imperfect kernels and cache hits are not in it.
"""

import dataclasses
import math
import re
from collections import Counter

BYTES = {"pred": 1, "bf16": 2} | {f"{kind}{8 * size}": size for kind in "suf" for size in (1, 2, 4, 8)}
# Instructions that launch nothing.
FREE = ("parameter", "bitcast", "get-tuple-element", "constant", "tuple", "after-all", "partition-id", "replica-id")
HOST = ("infeed", "outfeed", "send", "recv")
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?%?([\w.\-]+) = (\((?:[^()]|\([^()]*\))*\)|[a-z]\w*\[[\d,]*\](?:\{[^}]*\})?) ([a-z][\w\-]*)\((.*)$"
)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO."""

    name: str
    shape: str
    op: str
    operands: tuple[str, ...]
    rest: str  # attributes

    def attribute(self, pattern: str) -> str:
        """The first group of a pattern, empty where it is not found."""
        found = re.search(pattern, self.rest)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What one launch costs."""

    kind: str
    part: str  # of the network that it belongs to
    bytes: int
    flops: float
    float32: bool  # a convolution or product of float32


@dataclasses.dataclass(frozen=True)
class Cost:
    """One compiled program.

    Attributes:
      kernels: of its longest part: the body of a loop, once, or the program.
      cycles: that the compiler itself estimates, on TPUs; 0 elsewhere.
      host: transfers to and from the host.
      collective_bytes: that leave each device.
    """

    kernels: tuple[Kernel, ...]
    cycles: int
    host: int
    collective_bytes: int

    @property
    def bytes(self) -> int:
        """Read and written."""
        return sum(kernel.bytes for kernel in self.kernels)

    @property
    def flops(self) -> float:
        """Of convolutions, products and attention."""
        return sum(kernel.flops for kernel in self.kernels)

    @property
    def float32(self) -> Counter[str]:
        """Convolutions and products in float32, by part of the network."""
        return Counter(kernel.part for kernel in self.kernels if kernel.float32)

    def bound(self, flops_per_s: float, bytes_per_s: float) -> float:
        """The least seconds."""
        return sum(max(kernel.flops / flops_per_s, kernel.bytes / bytes_per_s) for kernel in self.kernels)

    def parts(self) -> list[tuple[str, float]]:
        """Share of the bytes by part of the network, the largest first."""
        by_part: Counter[str] = Counter()
        for kernel in self.kernels:
            by_part[kernel.part] += kernel.bytes
        return [(name, count / max(self.bytes, 1)) for name, count in by_part.most_common()]


def _sizes(shape: str) -> list[tuple[str, list[int]]]:
    return [(kind, [int(n) for n in dims.split(",") if n]) for kind, dims in _ARRAY.findall(shape) if kind in BYTES]


def _num_bytes(shape: str) -> int:
    return sum(BYTES[kind] * math.prod(dims) for kind, dims in _sizes(shape))


def _parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    """Instructions by computation and name, and the computation that the program begins with."""
    computations: dict[str, dict[str, Instruction]] = {}
    current, entry = "", ""
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
            current = head[2]
            entry = current if head[1] else entry
            computations[current] = {}
        elif found := _INSTRUCTION.match(line):
            name, shape, op, rest = found.groups()
            depth, end = 1, 0
            while end < len(rest) and depth:
                depth += {"(": 1, ")": -1}.get(rest[end], 0)
                end += 1
            operands = tuple(dict.fromkeys(re.findall(r"%([\w.\-]+)", rest[: end - 1])))
            computations[current][name] = Instruction(name, shape, op, operands, rest[end:])
    return computations, entry


def _longest(computations: dict[str, dict[str, Instruction]], entry: str) -> str:
    """The entry, or the body of a loop that is at least half as long as what it was called from."""
    for one in computations[entry].values():
        body = one.attribute(r"body=%?([\w.\-]+)") if one.op == "while" else ""
        if body and 2 * len(computations[body]) > len(computations[entry]):
            return _longest(computations, body)
    return entry


def _convolution_flops(one: Instruction, table: dict[str, Instruction]) -> float:
    """Twice the products, from the two arrays that are not the result of the forward pass."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.rest)
    arrays = [_sizes(table[name].shape)[0][1] for name in one.operands[:2]] + [_sizes(one.shape)[0][1]]
    if not labels or len(arrays) < 3:
        return 0.0
    window = math.prod(int(n) for n in one.attribute(r"window=\{size=([\dx]+)").split("x") if n)
    target = one.attribute(r'custom_call_target="([^"]*)"')
    output, kernel = (
        (arrays[0], arrays[1])
        if "BackwardInput" in target
        else (arrays[1], arrays[2])
        if "BackwardFilter" in target
        else (arrays[2], arrays[1])
    )
    return 2.0 * window * kernel[labels[2].index("i")] * math.prod(output)


def _product_flops(one: Instruction, table: dict[str, Instruction]) -> float:
    left, result = _sizes(table[one.operands[0]].shape)[0][1], _sizes(one.shape)[0][1]
    summed = [int(n) for n in one.attribute(r"lhs_contracting_dims=\{([\d,]*)\}").split(",") if n]
    if not summed:
        summed = [int(n) for n in one.attribute(r'"lhs_contracting_dimensions":\["([\d",]*)"\]').split('","') if n]
    return 2.0 * math.prod(result) * math.prod(left[i] for i in summed)


def _attention_flops(one: Instruction) -> float:
    """Of a fused kernel on (n, t, h, d): two products forward, five backward."""
    (_, dims), *_ = _sizes(one.shape)
    return (10.0 if "backward" in one.rest.lower() else 4.0) * math.prod(dims) * max(dims[1:3])


def _part(name: str) -> str:
    """Part of the network, by the path of Flax's modules in an instruction's metadata."""
    for pattern, part in (
        (r"attn.*group_norm|norm[12]|norm_out|bn\d|downsample_bn", "norms"),
        (r"attn.*to_(q|k|v|out)", "attention's projections"),
        (r"attn|attention_", "attention"),
        (r"[Dd]ropout", "dropout"),
        (r"time_", "time embedding"),
        (r"conv|sample|stage", "convolutions"),
        (r"random|threefry|_normal|_uniform|fold_in|erf_inv", "random numbers"),
        (r"concatenate", "concatenations"),
    ):
        if re.search(pattern, name):
            return part
    return "other"


def _kernel(one: Instruction, table: dict[str, Instruction], computations: dict[str, dict[str, Instruction]]) -> Kernel:
    moved = _num_bytes(one.shape) + sum(_num_bytes(table[name].shape) for name in one.operands if name in table)
    kind = one.attribute(r'custom_call_target="([^"]*)"') if one.op == "custom-call" else one.op
    path = one.attribute(r'op_name="([^"]*)"')
    inner = computations.get(one.attribute(r"calls=%?([\w.\-]+)"), {}) if one.op == "fusion" else {}
    flops, float32 = 0.0, False
    for each, around in [(one, table), *((part, inner) for part in inner.values())]:
        target = each.attribute(r'custom_call_target="([^"]*)"')
        if each.op == "convolution" or target.startswith("__cudnn$conv"):
            flops += _convolution_flops(each, around)
        elif each.op == "dot" or target.startswith("__cublas"):
            flops += _product_flops(each, around)
        elif "attention_" in path and each is one and one.op == "custom-call":
            flops += _attention_flops(one)
            continue
        else:
            continue
        float32 |= any(_sizes(around[name].shape)[0][0] == "f32" for name in each.operands[:1] if name in around)
    return Kernel(kind, _part(path), moved, flops, float32)


def analyse(text: str) -> Cost:
    """Costs of a program from its optimised HLO, `compiled.as_text()`."""
    computations, entry = _parse(text)
    table = computations[_longest(computations, entry)]
    kernels = tuple(_kernel(one, table, computations) for one in table.values() if one.op not in FREE)
    cycles = sum(int(one.attribute(r'"estimated_cycles":"(\d+)"') or 0) for one in table.values())
    host = sum(one.op.startswith(HOST) for part in computations.values() for one in part.values())
    sent = sum(_num_bytes(one.shape) for one in table.values() if one.op.removesuffix("-start") in COLLECTIVES)
    return Cost(kernels, cycles, host, sent)
