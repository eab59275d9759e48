"""Collectives of small programs, worked by hand: which groups, how often, how much."""

import pytest

from recvis_jax.planning import collectives, hlo


def groups(attributes, devices=8):
    lines = ["ENTRY %e (p: f32[2]) -> f32[2] {", "  %p = f32[2] parameter(0)"]
    lines += [f"  ROOT %r = f32[2] all-reduce(%p), {attributes}", "}"]
    return collectives.groups_of(hlo.parse("\n".join(lines)).computations["e"]["r"], devices)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ("replica_groups={{0,1},{2,3}}, to_apply=%sum", ((0, 1), (2, 3))),
        ("replica_groups={}, to_apply=%sum", (tuple(range(8)),)),
        ("to_apply=%sum", (tuple(range(8)),)),
        ("replica_groups=[2,4]<=[8], to_apply=%sum", ((0, 1, 2, 3), (4, 5, 6, 7))),
        ("replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%sum", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("replica_groups=mesh['x'=4,'y'=2] {'y'}, to_apply=%sum", ((0, 1), (2, 3), (4, 5), (6, 7))),
        ("replica_groups=mesh['x'=4,'y'=2] {'x'}, to_apply=%sum", ((0, 2, 4, 6), (1, 3, 5, 7))),
        ("replica_groups=mesh['x'=4,'y'=2] {'x','y'}, to_apply=%sum", (tuple(range(8)),)),
        ("replica_groups=mesh['x'=8] {'x':(1)2}, to_apply=%sum", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("replica_groups=mesh['x'=8] {'x':(4)2}, to_apply=%sum", ((0, 1), (2, 3), (4, 5), (6, 7))),
        ("source_target_pairs={{0,1},{1,2}}", ((0, 1), (1, 2))),
    ],
)
def test_groups(attributes, expected):
    assert groups(attributes) == expected


PROGRAM = """
%all-reduce-scatter.1 (p: bf16[64,4]) -> bf16[8,4] {
  %p = bf16[64,4]{1,0} parameter(0)
  %sum = bf16[64,4]{1,0} all-reduce(%p), replica_groups=[1,8]<=[8], to_apply=%add
  ROOT %part = bf16[8,4]{1,0} slice(%sum), slice={[0:8], [0:4]}
}

%body (s: (s32[], f32[10])) -> (s32[], f32[10]) {
  %s = (s32[], f32[10]{0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[10]{0} get-tuple-element(%s), index=1
  %start = (f32[10]{0}, f32[80]{0}) all-gather-start(%x), replica_groups=[1,8]<=[8], dimensions={0}
  %all = f32[80]{0} all-gather-done(%start)
  %next = (f32[10]{0}, f32[10]{0}, u32[], u32[]) collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}
  %there = f32[10]{0} collective-permute-done(%next)
  ROOT %t = (s32[], f32[10]{0}) tuple(%i, %there)
}

ENTRY %main (p: bf16[64,4], q: f32[3], s: (s32[], f32[10])) -> f32[3] {
  %p = bf16[64,4]{1,0} parameter(0)
  %q = f32[3]{0} parameter(1)
  %s = (s32[], f32[10]{0}) parameter(2)
  %w = (s32[], f32[10]{0}) while(%s), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"6"}}
  %f = bf16[8,4]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1
  %two = (f32[3]{0}, bf16[64,4]{1,0}) all-reduce(%q, %p), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %alone = f32[3]{0} all-reduce(%q), replica_groups={{0},{1}}, to_apply=%add
  ROOT %r = f32[3]{0} get-tuple-element(%two), index=0
}
"""


def test_collectives_of_a_program():
    program = hlo.parse(PROGRAM)
    found = collectives.collectives_of(program, hlo.count_runs(program), 8)
    listed = {(c.kind, c.times, c.bytes, c.size) for c in found}
    assert listed == {
        ("all-gather", 6, 320, 8),
        ("collective-permute", 6, 40, 2),
        ("reduce-scatter", 1, 512, 8),
        ("all-reduce", 1, 512 + 12, 4),
    }
    received = {c.kind: c.received() for c in found}
    assert received == {
        "all-gather": 280,
        "collective-permute": 40,
        "reduce-scatter": 448,
        "all-reduce": 2 * 524 * 3 / 4,
    }
    assert [c.kind for c in found] == ["all-gather", "all-reduce", "reduce-scatter", "collective-permute"]
