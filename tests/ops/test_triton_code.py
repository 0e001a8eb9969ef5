"""The machine code of the kernels for CUDA devices, as compiled for sm_90. That needs no GPU.

The budgets are the instructions that a device issues for an element in the time that its memory takes for it: 132
multiprocessors with 128 lanes at 1.98 GHz against 4.3 TB/s.
"""

import re
import subprocess
from dataclasses import dataclass

import pytest

from mpelu.ops import dispatch

triton = pytest.importorskip("triton", reason="triton is not installed", exc_type=ImportError)

from triton import knobs  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

pytestmark = pytest.mark.skipif(knobs.runtime.interpret, reason="TRITON_INTERPRET=1: nothing is compiled")

kernels = dispatch.cuda()
ITEM_SIZE = {"fp32": 4, "bf16": 2, "fp16": 2}
FORWARD_BUDGET = {4: 62, 2: 31}
BACKWARD_BUDGET = {4: 93, 2: 47}
FROM_OUTPUT_BUDGET = {4: 93, 2: 55}  # of half types, the logarithm takes up to 17 % longer than the memory
THREADS = 128
# size, number of parameters, and elements in a row with the same one
LAYOUTS = {
    "NCHW": (128 * 64 * 32 * 32, 64, 32 * 32),
    "NCHW, 56 x 56": (64 * 64 * 56 * 56, 64, 56 * 56),
    "NCHW, 14 x 14": (128 * 1024 * 14 * 14, 1024, 14 * 14),
    "NCHW, 7 x 7": (128 * 2048 * 7 * 7, 2048, 7 * 7),
    "channels_last": (128 * 64 * 32 * 32, 64, 1),
    "N C": (4096 * 1024, 1024, 1),
    "shared": (128 * 64 * 32 * 32, 1, 128 * 64 * 32 * 32),
}
CASES = [  # half types have the smaller budgets
    *[("bf16", layout) for layout in LAYOUTS],
    *[("fp32", layout) for layout in ("NCHW", "NCHW, 7 x 7", "channels_last")],
    ("fp16", "NCHW"),
]


@dataclass(frozen=True)
class Code:
    ptx: str
    instructions: list[str]
    loops: list[range]
    resources: dict[str, int]


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    """Return a function that compiles a kernel for scalar arguments, which are specialized as in a launch."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))

    def compile_for(kernel, dtype, *scalars):
        pointers = [name for name in kernel.arg_names if name.endswith("_ptr")]
        types = {"alpha_ptr": "fp32", "beta_ptr": "fp32", "partial_ptr": "fp64"}
        signature = {name: f"*{types.get(name, dtype)}" for name in pointers}
        constants, aligned = {}, list(pointers)
        others = [name for name in kernel.arg_names if name not in pointers]
        for name, value in zip(others, scalars, strict=True):
            integer = "i32" if value < 2**31 else "i64"
            signature[name] = "constexpr" if name.isupper() or value == 1 else integer
            if signature[name] == "constexpr":
                constants[name] = value
            elif value % 16 == 0:
                aligned.append(name)
        attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
        signature = {name: signature[name] for name in kernel.arg_names}
        source = ASTSource(kernel, signature, constants, attributes)
        done = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=kernels._OPTIONS)
        return disassembled(done, tmp_path / "kernel.cubin")

    return compile_for


def disassembled(kernel, file):
    file.write_bytes(kernel.asm["cubin"])

    def output(*command):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    instructions, labels = [], {}
    for line in output(knobs.nvidia.nvdisasm.path, "-c", file).splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            instructions.append(instruction[1])
    while instructions[-1] == "NOP":
        instructions.pop()
    loops = []
    for position, instruction in enumerate(instructions):
        jump = re.search(r"BRA `\((\.L_x_\d+)\)", instruction)
        if jump and labels[jump[1]] < position:
            loops.append(range(labels[jump[1]], position + 1))
    usage = output(knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file)
    resources = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return Code(kernel.asm["ptx"], instructions, loops, resources)


def assert_nothing_spills(code):
    assert code.resources["STACK"] == code.resources["LOCAL"] == 0
    assert not [line for line in code.instructions if re.search(r"\b(LDL|STL)\b", line)]
    assert code.resources["REG"] <= 128  # 4 programs of 4 warps on a multiprocessor, in the worst case


def assert_only_exact_arithmetic(code, dtype):
    """Expect operations that IEEE 754 defines, which the interpreter then computes as a device does, and rounded casts.

    The exceptions are quotients of parameters: one bounds x, and the error of the other, 1 / alpha, is corrected.
    """
    assert not re.findall(r"\w+\.approx\S*|\w+\S*\.ftz\S*", code.ptx)
    assert "fma.rn.f32" in code.ptx
    casts = set(re.findall(r"cvt\S*\.f32(?=\s)|cvt\.rn\S*", code.ptx)) - {"cvt.f64.f32", "cvt.rn.f32.s32"}
    rounded = {
        "fp32": set(),
        "bf16": {"cvt.rn.bf16.f32", "cvt.rn.bf16x2.f32"},
        "fp16": {"cvt.rn.f16.f32", "cvt.rn.f16x2.f32"},
    }
    assert casts <= rounded[dtype]
    assert bool(casts) == (dtype != "fp32")


def compiled_backward(compiled, dtype, size, channels, stride, from_output=False):
    capacity = kernels._BACKWARD_BYTES // ITEM_SIZE[dtype]
    plan = kernels._plan(size, channels, stride, capacity, kernels._MANY_SAMPLES)
    numbers = plan.partial_sums[0], plan.tiles, plan.chain
    return compiled(kernels._backward, dtype, *numbers, *plan.cut, from_output), plan


def vectors(code, instruction):
    """Return how many accesses of 16 bytes there are, and how many narrow ones of 1 or 2."""
    of_16 = re.findall(rf"{instruction}\.global\S*\.v4\.b32", code.ptx)
    narrow = re.findall(rf"{instruction}\.global\S*\.[bus](8|16)\b", code.ptx)
    return len(of_16), len(narrow)


@pytest.mark.parametrize(("dtype", "layout"), CASES)
def test_forward(compiled, dtype, layout):
    plan = kernels._plan(*LAYOUTS[layout], kernels._FORWARD_BYTES // ITEM_SIZE[dtype])
    code = compiled(kernels._forward, dtype, *plan.cut)
    assert_nothing_spills(code)
    accesses = kernels._FORWARD_BYTES // THREADS // 16
    loads, narrow_loads = vectors(code, "ld")
    assert loads >= accesses  # those of parameters may be wide, too
    assert vectors(code, "st") == (accesses, narrow_loads) == (accesses, 0)
    elements = kernels._FORWARD_BYTES // ITEM_SIZE[dtype] // THREADS
    assert len(code.instructions) / elements <= FORWARD_BUDGET[ITEM_SIZE[dtype]]
    assert_only_exact_arithmetic(code, dtype)


@pytest.mark.parametrize("from_output", [False, True], ids=["from x", "from y"])
@pytest.mark.parametrize(("dtype", "layout"), CASES)
def test_backward(compiled, dtype, layout, from_output):
    code, plan = compiled_backward(compiled, dtype, *LAYOUTS[layout], from_output)
    assert_nothing_spills(code)
    assert_only_exact_arithmetic(code, dtype)
    accesses = kernels._BACKWARD_BYTES // THREADS // 16
    loads, narrow_loads = vectors(code, "ld")
    assert loads >= 2 * accesses
    assert vectors(code, "st") == (accesses, narrow_loads) == (accesses, 0)
    (loop,) = code.loops
    elements = kernels._BACKWARD_BYTES // ITEM_SIZE[dtype] // THREADS
    outside = (len(code.instructions) - len(loop)) / plan.chain
    budget = FROM_OUTPUT_BUDGET if from_output else BACKWARD_BUDGET
    assert (len(loop) + outside) / elements <= budget[ITEM_SIZE[dtype]]


@pytest.mark.parametrize(
    ("size", "channels", "stride"),
    [(1, 1, 1), (7, 7, 1), (1023, 1, 1023), (90, 3, 5), (2**33 + 1, 1, 2**33 + 1), (2**33, 2, 1), (2**33, 2, 2**31)],
)
def test_compiles_for_small_and_large_sizes(compiled, size, channels, stride):
    plan = kernels._plan(size, channels, stride, kernels._FORWARD_BYTES // ITEM_SIZE["fp32"])
    assert_nothing_spills(compiled(kernels._forward, "fp32", *plan.cut))
    code, _ = compiled_backward(compiled, "fp32", size, channels, stride)
    assert_nothing_spills(code)


def test_constants_are_of_float32_to_every_triton():
    """Triton 3.7, which torch 2.13 asks for, takes for a float64 what is no normal number of float32."""
    constants = [value.value for value in vars(kernels).values() if isinstance(value, triton.language.constexpr)]
    numbers = [value for value in constants if isinstance(value, float)]
    assert numbers
    assert all(2**-126 <= abs(number) <= (2 - 2**-23) * 2**127 for number in numbers)


@pytest.mark.parametrize("from_output", [False, True], ids=["from x", "from y"])
@pytest.mark.parametrize(("channels", "span"), [(7, 1), (64, 1), (64, 3025)])
def test_second_stage(compiled, channels, span, from_output):
    block = kernels._second_stage(channels, span)
    assert_nothing_spills(compiled(kernels._add, "fp32", 100, channels, span, from_output, *block))
