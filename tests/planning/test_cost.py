"""Arithmetic and memory traffic of small programs, worked by hand."""

import pytest

from recvis_jax.planning import cost, hlo


def flops(lines):
    program = hlo.parse("ENTRY %main () -> f32[] {\n" + lines + "}\n")
    computation = program.computations["main"]
    return sum(cost.flops_of(computation, i) for i in computation.values())


def convolution(image, kernel, output, attributes):
    return flops(
        f"  %x = f32[{image}]{{3,2,1,0}} parameter(0)\n  %k = f32[{kernel}]{{3,2,1,0}} parameter(1)\n"
        f"  ROOT %c = f32[{output}]{{3,2,1,0}} convolution(%x, %k), {attributes}\n"
    )


def test_a_product_of_matrices():
    lines = "  %a = f32[5,4,8]{2,1,0} parameter(0)\n  %b = f32[5,8,16]{2,1,0} parameter(1)\n"
    dims = "lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={1}"
    assert flops(lines + f"  ROOT %d = f32[5,4,16]{{2,1,0}} dot(%a, %b), {dims}\n") == 2 * 5 * 4 * 16 * 8


def test_convolutions():
    labels = "dim_labels=b01f_01io->b01f"
    # Of 4 outputs and 3 taps the first and the last meet the padding: 10 products an axis.
    found = convolution("6,4,4,2", "3,3,2,5", "6,4,4,5", f"window={{size=3x3 pad=1_1x1_1}}, {labels}")
    assert found == 2 * 10 * 10 * 2 * 5 * 6
    # 2 outputs of stride 2, without padding: all 6.
    found = convolution("6,5,5,2", "3,3,2,5", "6,2,2,5", f"window={{size=3x3 stride=2x2}}, {labels}")
    assert found == 2 * 6 * 6 * 2 * 5 * 6
    # Depthwise: every kernel sees one channel.
    found = convolution("6,4,4,8", "1,1,1,8", "6,4,4,8", f"window={{size=1x1}}, {labels}, feature_group_count=8")
    assert found == 2 * 4 * 4 * 8 * 6
    # The gradient of the one with stride 2 with respect to its image: holes between pixels cost nothing.
    window = "window={size=3x3 pad=2_2x2_2 lhs_dilate=2x2 rhs_reversal=1x1}"
    found = convolution("6,2,2,5", "3,3,2,5", "6,5,5,2", f"{window}, dim_labels=b01f_01oi->b01f")
    assert found == 2 * 6 * 6 * 2 * 5 * 6


def test_a_batch_of_matrices_as_a_convolution_with_holes():
    lines = "  %a = bf16[12,50,64]{2,1,0} parameter(0)\n  %b = bf16[12,50,64]{2,1,0} parameter(1)\n"
    window = "window={size=12 stride=11 lhs_dilate=12}, dim_labels=0bf_0oi->0bf"
    found = flops(lines + f"  ROOT %c = f32[12,50,50]{{2,1,0}} convolution(%a, %b), {window}\n")
    assert found == 2 * 12 * 50 * 50 * 64


@pytest.mark.parametrize("kind", ["Forward", "BackwardInput", "BackwardFilter"])
def test_library_calls_of_gpus(kind):
    """The three convolutions of a layer multiply as often: 10 products an axis, 2 to 5 channels, 6 images."""
    arrays = {"x": "bf16[6,4,4,2]", "k": "bf16[5,3,3,2]", "y": "bf16[6,4,4,5]"}
    a, b, result = {"Forward": "xky", "BackwardInput": "ykx", "BackwardFilter": "xyk"}[kind]
    lines = f"  %a = {arrays[a]}{{3,2,1,0}} parameter(0)\n  %b = {arrays[b]}{{3,2,1,0}} parameter(1)\n"
    call = f"({arrays[result]}{{3,2,1,0}}, u8[0]{{0}}) custom-call(%a, %b), window={{size=3x3 pad=1_1x1_1}}"
    text = f'{lines}  ROOT %c = {call}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$conv{kind}"\n'
    assert flops(text) == 2 * 10 * 10 * 2 * 5 * 6


def test_a_library_product():
    lines = "  %a = bf16[4,8]{1,0} parameter(0)\n  %b = bf16[8,16]{1,0} parameter(1)\n"
    config = '{"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}'
    call = f'custom-call(%a, %b), custom_call_target="__cublas$lt$matmul", backend_config={config}'
    assert flops(lines + f"  ROOT %d = (bf16[4,16]{{1,0}}, s8[99]{{0}}) {call}\n") == 2 * 4 * 16 * 8


MOVES = """
%sliced (p: f32[10,4], i: s32[], w: f32[4,4]) -> f32[1,4] {
  %p = f32[10,4]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %w = f32[4,4]{1,0} parameter(2)
  %zero = s32[] constant(0)
  %row = f32[1,4]{1,0} dynamic-slice(%p, %i, %zero), dynamic_slice_sizes={1,4}
  ROOT %dot = f32[1,4]{1,0} dot(%row, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%updated (p: f32[10,4], i: s32[], r: f32[1,4]) -> f32[10,4] {
  %p = f32[10,4]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %r = f32[1,4]{1,0} parameter(2)
  %zero = s32[] constant(0)
  %new = f32[10,4]{1,0} dynamic-update-slice(%p, %r, %i, %zero)
  ROOT %same = f32[10,4]{1,0} bitcast(%new)
}

ENTRY %main (x: f32[10,4], i: s32[], w: f32[4,4]) -> f32[10,4] {
  %x = f32[10,4]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %w = f32[4,4]{1,0:S(1)} parameter(2)
  %row = f32[1,4]{1,0} fusion(%x, %i, %w), kind=kOutput, calls=%sliced
  %twice = f32[1,4]{1,0:S(1)} add(%row, %row)
  ROOT %out = f32[10,4]{1,0} fusion(%x, %i, %twice), kind=kLoop, calls=%updated
}
"""


def test_bytes_that_move():
    program = hlo.parse(MOVES)
    main = program.computations["main"]
    moved = {name: cost.bytes_of(program, main, i) for name, i in main.items()}
    # A row of 16 bytes is read of x, and the counter; w lies on the chip. A row is written; two are added onto the
    # chip; of the update only the row is written, and nothing of x is read.
    assert moved == {"x": 0, "i": 0, "w": 0, "row": 16 + 4 + 16, "twice": 32, "out": 4 + 16}
    found = cost.cost_of(program, hlo.count_runs(program))
    assert found == cost.Cost(flops=2 * 4 * 4, bytes=36 + 32 + 20)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        (dict(image=4, kernel=3, output=4, pad=1, stride=1, holes=1, spread=1), 10),
        (dict(image=7, kernel=3, output=4, pad=1, stride=2, holes=1, spread=1), 10),
        (dict(image=5, kernel=3, output=5, pad=2, stride=1, holes=1, spread=2), 5 + 2 * 3),
        (dict(image=2, kernel=3, output=5, pad=2, stride=1, holes=2, spread=1), 6),
    ],
)
def test_valid_taps(sizes, expected):
    assert cost.valid_taps(**sizes) == expected
