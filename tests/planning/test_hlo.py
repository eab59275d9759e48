"""Programs' texts, with numbers of runs worked by hand."""

import pytest

from recvis_jax.planning import hlo

# A loop of 5 rounds by its condition; in it one of 3 that the compiler knows, and one down from 9 in steps of 2.
LOOPS = """HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[8,16]{1,0})->f32[8,16]{1,0}}

%fused (p: f32[8,16], q: f32[16,16]) -> f32[8,16] {
  %p = f32[8,16]{1,0:T(8,128)} parameter(0)
  %q = f32[16,16]{1,0:T(8,128)S(1)} parameter(1)
  ROOT %dot.1 = f32[8,16]{1,0:T(8,128)} dot(%p, %q), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%inner_body (s: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %s = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) parameter(0)
  %x = f32[8,16]{1,0:T(8,128)} get-tuple-element(%s), index=1
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  %w = f32[16,16]{1,0:T(8,128)S(1)} constant({...})
  %f = f32[8,16]{1,0:T(8,128)} fusion(%x, %w), kind=kOutput, calls=%fused, metadata={op_name="a(b)=c"}
  ROOT %t = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) tuple(%i, %f)
}

%inner_condition (s: (s32[], f32[8,16])) -> pred[] {
  %s = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) parameter(0)
  ROOT %unread = pred[] custom-call(%s), custom_call_target="opaque"
}

%down_body (d: (f32[8,16], s32[])) -> (f32[8,16], s32[]) {
  %d = (f32[8,16]{1,0}, s32[]) parameter(0)
  %y = f32[8,16]{1,0} get-tuple-element(%d), index=0
  %j = s32[] get-tuple-element(%d), index=1
  %two = s32[] constant(2)
  %less = s32[] subtract(%j, %two)
  ROOT %u = (f32[8,16]{1,0}, s32[]) tuple(%y, %less)
}

%wrapped (a: s32[], b: s32[]) -> pred[] {
  %a = s32[] parameter(0)
  %b = s32[] parameter(1)
  ROOT %gt = pred[] compare(%a, %b), direction=GT
}

%down_condition (d: (f32[8,16], s32[])) -> pred[] {
  %d = (f32[8,16]{1,0}, s32[]) parameter(0)
  %j = s32[] get-tuple-element(%d), index=1
  %one = s32[] constant(1)
  ROOT %c = pred[] fusion(%j, %one), kind=kLoop, calls=%wrapped
}

%body (s: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %s = (s32[], f32[8,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[8,16]{1,0} get-tuple-element(%s), index=1
  %one = s32[] constant(1)
  %more = s32[] add(%i, %one)
  %while.1 = (s32[], f32[8,16]{1,0}) while(%s), condition=%inner_condition, body=%inner_body, backend_config={"known_trip_count":{"n":"3"}}
  %x1 = f32[8,16]{1,0} get-tuple-element(%while.1), index=1
  %nine = s32[] constant(9)
  %start = (f32[8,16]{1,0}, s32[]) tuple(%x1, %nine)
  %while.2 = (f32[8,16]{1,0}, s32[]) while(%start), condition=%down_condition, body=%down_body
  %x2 = f32[8,16]{1,0} get-tuple-element(%while.2), index=0
  ROOT %t = (s32[], f32[8,16]{1,0}) tuple(%more, %x2)
}

%condition (s: (s32[], f32[8,16])) -> pred[] {
  %s = (s32[], f32[8,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %five = s32[]{:T(128)} constant(5)
  ROOT %lt = pred[] compare(%five, %i), direction=GT
}

ENTRY %main (x: f32[8,16]) -> f32[8,16] {
  %x = f32[8,16]{1,0:T(8,128)} parameter(0)
  %zero = s32[] constant(0)
  %copy = s32[]{:T(128)} copy(%zero)
  %t = (s32[], /*index=1*/f32[8,16]{1,0}) tuple(%copy, %x)
  %while.0 = (s32[], f32[8,16]{1,0}) while(%t), condition=%condition, body=%body
  ROOT %r = f32[8,16]{1,0} get-tuple-element(%while.0), index=1
}
"""  # noqa: E501


def test_loops_run_as_often_as_conditions_and_counters_say():
    program = hlo.parse(LOOPS)
    assert program.entry == "main" and len(program.computations) == 9
    counts = hlo.count_runs(program)
    # 9, 7, 5, 3 are above 1: four rounds.
    expected = {"main": 1, "body": 5, "inner_body": 15, "fused": 15, "down_body": 20}
    assert {name: counts.runs[name] for name in expected} == expected
    assert counts.loops == 3 and counts.unknown == () and counts.fused == {"fused", "wrapped"}


def test_a_loop_that_cannot_be_read_is_named_and_counted_once():
    counts = hlo.count_runs(hlo.parse(LOOPS.replace("known_trip_count", "nothing_known")))
    assert counts.unknown == ("while.1",) and counts.runs["inner_body"] == 5


def test_instructions():
    body = hlo.parse(LOOPS).computations["inner_body"]
    fusion = body["f"]
    assert (fusion.opcode, fusion.operands, fusion.calls) == ("fusion", ("x", "w"), [("calls", "fused")])
    assert fusion.arrays == (hlo.Array("f32", (8, 16), "{1,0:T(8,128)}"),)
    assert not body["w"].arrays[0].in_main_memory and body["x"].arrays[0].in_main_memory
    assert [a.shape for a in body["t"].arrays] == [(), (8, 16)] and body["t"].is_root


@pytest.mark.parametrize(
    ("shape", "expected"),
    [("f32[8,128]{1,0}", 4096), ("bf16[3]", 6), ("pred[]", 1), ("s4[10]", 5), ("f8e4m3fn[7]{0}", 7), ("token[]", 0)],
)
def test_bytes(shape, expected):
    assert sum(a.bytes for a in hlo.arrays(shape)) == expected


def test_bytes_of_a_tuple():
    found = hlo.arrays("(f32[2,2]{1,0:T(8,128)(2,1)}, /*index=1*/u8[5]{0}, (bf16[], c64[2]))")
    assert [a.bytes for a in found] == [16, 5, 2, 16]
