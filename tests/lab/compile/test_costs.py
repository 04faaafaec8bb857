"""Laws of reading compiled programs, on small ones written by hand."""

import pytest

from block_recurrent.lab.compile import costs as costs_of
from block_recurrent.lab.compile.costs import program_costs, type_bytes
from block_recurrent.lab.compile.target import CHIPS

V5E = CHIPS["v5e"]
FILE = f"{costs_of._PACKAGE}/model/attention.py"
HEAD = f"""HloModule step, is_scheduled=true

FileNames
1 "{FILE}"
2 "/lib/site-packages/optax/update.py"

FunctionNames
1 "attend"

FileLocations
1 {{file_name_id=1 function_name_id=1 line=98 end_line=98 column=4 end_column=8}}
2 {{file_name_id=2 function_name_id=1 line=7 end_line=7 column=1 end_column=2}}

StackFrames
1 {{file_location_id=1 parent_frame_id=1}}
2 {{file_location_id=2 parent_frame_id=2}}
3 {{file_location_id=2 parent_frame_id=1}}

"""


def cycles(number: int) -> str:
    return f'backend_config={{"window_config":{{"estimated_cycles":"{number}"}}}}'


def condition(name: str, limit: int, direction: str = "LT") -> str:
    return f"""
%{name} (p: (s32[], f32[8])) -> pred[] {{
  %{name}.limit = s32[]{{:T(128)}} constant({limit})
  %{name}.p = (s32[]{{:T(128)}}, f32[8]{{0:T(256)}}) parameter(0)
  %{name}.i = s32[]{{:T(128)}} get-tuple-element(%{name}.p), index=0
  ROOT %{name}.c = pred[]{{:T(512)}} compare(%{name}.i, %{name}.limit), direction={direction}
}}
"""


def body(name: str, *lines: str) -> str:
    inside = "\n".join(f"  {line}" for line in lines)
    return f"""
%{name} (p: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %{name}.x = (s32[], f32[8]{{0:T(256)}}) parameter(0)
{inside}
}}
"""


def fusion(name: str, number: int, operation: str = "jit(step)/jvp()/dot", frame: int = 1) -> str:
    metadata = f'metadata={{op_name="{operation}" stack_frame_id={frame}}}'
    return (
        f"%{name} = (f32[8]{{0:T(8,128)(2,1)S(1)}}, /*index=1*/f32[]) fusion(%x), kind=kLoop, "
        f"calls=%fused.{name}, {metadata}, {cycles(number)}"
    )


def loop(name: str, condition: str, body: str, config: str = "") -> str:
    return (
        f"%{name} = (s32[]{{:T(128)}}, f32[8]{{0}}) while(%x), condition=%{condition}, "
        f"body=%{body}{config}"
    )


def entry(*lines: str) -> str:
    inside = "\n".join(f"  {line}" for line in lines)
    return (
        f"\nENTRY %main (x: f32[8]) -> f32[8] {{\n  %x = f32[8]{{0}} parameter(0)\n{inside}\n}}\n"
    )


def costs(*computations: str, **kernel_cycles: int) -> dict:
    named = {f"{name}.3": number for name, number in kernel_cycles.items()}
    return program_costs(HEAD + "".join(computations), V5E, named)


def cycles_of(*computations: str) -> int | None:
    return costs(*computations)["cycles_outside_kernels"]


def places(found: dict) -> dict:
    """Cycles by place and pass."""
    cycles = {(each["place"], each["pass"]): each["seconds"] * 1.5e9 for each in found["places"]}
    return {place: round(each) for place, each in cycles.items()}


def test_nested_loops_multiply():
    found = cycles_of(
        condition("outer_cond", 9),
        condition("inner_cond", 8),
        body("inner", fusion("a", 100)),
        body("outer", fusion("b", 10), loop("w1", "inner_cond", "inner")),
        entry(fusion("c", 1), loop("w2", "outer_cond", "outer")),
    )
    assert found == 1 + 9 * 10 + 9 * 8 * 100


@pytest.mark.parametrize("direction, trips", [("LT", 5), ("LE", 6)])
def test_a_trip_count_is_the_constant_of_the_condition(direction, trips):
    parts = condition("cond", 5, direction), body("inside", fusion("a", 7))
    assert cycles_of(*parts, entry(loop("w", "cond", "inside"))) == 7 * trips


def test_a_trip_count_that_is_said_wins():
    said = ', backend_config={"known_trip_count":{"n":"3"},"known_init_step":{"init":"0"}}'
    parts = condition("cond", 5), body("inside", fusion("a", 7))
    assert cycles_of(*parts, entry(loop("w", "cond", "inside", said))) == 21


def test_a_trip_count_that_is_not_to_be_seen_is_told():
    unseen = condition("cond", 5).replace("constant(5)", "parameter(1)")
    found = costs(unseen, body("inside", fusion("a", 7)), entry(loop("w", "cond", "inside")))
    assert found["cycles_outside_kernels"] == 7 and found["unknown_loops"] == ["w"]


def test_what_is_called_counts():
    found = cycles_of(
        body("called", fusion("d", 5)),
        entry(fusion("a", 100), "%k = f32[8]{0} call(%x), to_apply=%called"),
    )
    assert found == 105


def test_a_program_without_estimates_has_no_cycles():
    found = costs(entry("%y = f32[8]{0} fusion(%x), kind=kLoop, calls=%f"))
    assert found["cycles_outside_kernels"] is None and found["places"] == []


def test_places_are_lines_of_the_library_by_pass():
    again = "jit(step)/transpose(jvp())/checkpoint/rematted_computation/mul"
    found = costs(
        entry(
            fusion("a", 1, frame=2),
            fusion("b", 2, "jit(step)/transpose(jvp())/mul"),
            fusion("c", 4, again),
            fusion("d", 8, "jit(step)/mul", frame=3),
            f"%e = f32[8]{{0}} copy(%x), {cycles(16)}",
        )
    )
    assert places(found) == {
        ("(copy)", "update"): 16,
        ("optax/update.py:7", "update"): 8,
        ("model/attention.py:98", "computed again"): 4,
        ("model/attention.py:98", "backward"): 2,
        ("model/attention.py:98", "forward"): 1,
    }
    assert list(places(found).values()) == [16, 8, 4, 2, 1]


COLLECTIVES = entry(
    "%big = bf16[32,8]{1,0} parameter(1)",
    "%r = (f32[8]{0}, bf16[32,8]{1,0:T(8,128)(2,1)}) all-reduce(%x, /*index=1*/%big), to_apply=%s",
    "%g = (f32[8]{0}, f32[32]{0}) all-gather-start(%x), dimensions={0}",
    "%h = f32[32]{0} all-gather-done(%g)",
    "%s = bf16[8,8]{1,0} reduce-scatter(%big), dimensions={0}, to_apply=%sum",
    "%p = (f32[8]{0}, f32[8]{0}, u32[]{:S(2)}, u32[]) collective-permute-start(%x)",
    loop("w", "cond", "inside"),
)


def test_collectives_have_bytes_and_the_trip_counts_of_their_loops():
    exchange = "%y = f32[8]{0} all-reduce(%inside.x), channel_id=1, to_apply=%sum"
    found = costs(condition("cond", 10), body("inside", exchange), COLLECTIVES)["collectives"]
    arrays = 8 * 4 + 32 * 8 * 2
    assert found["all-reduce"] == {"count": 1 + 10, "bytes": arrays + 10 * (4 + 32)}
    assert found["all-gather"] == {"count": 1, "bytes": 32 * 4}
    assert found["reduce-scatter"] == {"count": 1, "bytes": 32 * 8 * 2}
    assert found["collective-permute"]["count"] == 1
    assert 32 <= found["collective-permute"]["bytes"] <= 40


def test_collectives_in_fusions_and_behind_starts_count():
    inside = body("wrapped", "%z = f32[8]{0} all-reduce(%x), to_apply=%sum")
    start = "%a = ((f32[8]), f32[8], s32[]) async-start(%x), calls=%wrapped"
    fused = "%b = f32[8]{0} fusion(%x), kind=kCustom, calls=%wrapped"
    assert costs(inside, entry(start, fused))["collectives"]["all-reduce"]["count"] == 2


def kernel(name: str, estimate: str) -> str:
    config = f'backend_config={{"custom_call_config":{{"body":"TUzvU(%x)=="{estimate}}}}}'
    return (
        f'%{name}.3 = f32[512,512]{{1,0:T(8,128)S(1)}} custom-call(%x), custom_call_target="'
        f'tpu_custom_call", metadata={{op_name="jit(step)/jvp()/pallas_call" stack_frame_id=1}}, '
        + config
    )


ESTIMATE = ',"cost_estimate":{"flops":"4000","transcendentals":"600","bytes_accessed":"8200"}'


@pytest.mark.parametrize(("instructions", "longer"), [(60, 60), (6, 15)])
def test_a_kernel_takes_as_long_as_its_instructions_or_its_bytes(instructions, longer):
    inside = body("inside", kernel("attend", ESTIMATE))
    loops = condition("cond", 5), inside, entry(loop("w", "cond", "inside"))
    found = costs(*loops, attend=instructions)
    assert found["cycles_outside_kernels"] is None and found["unknown_kernels"] == []
    (called,) = found["kernels"]
    seconds = called.pop("seconds")
    sums = {"cycles": 5 * instructions, "bytes_accessed": 5 * 8200}
    assert called == {"name": "attend", "calls": 5, **sums}
    assert seconds["instructions"] == pytest.approx(5 * instructions / 1.5e9)
    assert seconds["memory"] == pytest.approx(5 * 8200 / 0.82e12)
    assert places(found) == {("model/attention.py:98", "forward"): 5 * longer}


def test_calls_of_equal_kernels_add_up():
    twice = entry(kernel("attend", ESTIMATE), kernel("attend", ESTIMATE).replace(".3 =", ".4 ="))
    (called,) = costs(twice, attend=60)["kernels"]
    assert (called["calls"], called["cycles"]) == (2, 120)


def test_a_kernel_whose_instructions_are_not_known_is_told():
    found = costs(entry(kernel("attend", ESTIMATE)))
    assert found["unknown_kernels"] == ["attend.3"]
    assert places(found) == {("model/attention.py:98", "forward"): 15}


def test_bytes_of_types():
    sizes = {
        "f32[8,128]{1,0:T(8,128)}": 4096,
        "pred[3]": 3,
        "s4[3]{0}": 2,
        "token[]": 0,
        "f32[]": 4,
    }
    assert {text: type_bytes(text) for text in sizes} == sizes
    assert type_bytes("(bf16[2,3]{1,0}, /*index=1*/u8[5])") == 17


H100 = CHIPS["h100"]
SLICED = """
%sliced (a: f32[64,1024], i: s32[], b: bf16[16]) -> (bf16[1024], f32[64,1024]) {
  %a = f32[64,1024]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %b = bf16[16]{0} parameter(2)
  %z = s32[] constant(0)
  %row = f32[1,1024]{1,0} dynamic-slice(%a, %i, %z), dynamic_slice_sizes={1,1024}
  %flat = f32[1024]{0} bitcast(%row)
  %low = bf16[1024]{0} convert(%flat)
  %put = f32[64,1024]{1,0} dynamic-update-slice(%a, %row, %i, %z)
  ROOT %both = (bf16[1024]{0}, f32[64,1024]{1,0}) tuple(%low, %put)
}
"""
PRODUCT = """
%product (p: bf16[8,32,64], q: bf16[8,64,16]) -> f32[8,32,16] {
  %p = bf16[8,32,64]{2,1,0} parameter(0)
  %q = bf16[8,64,16]{2,1,0} parameter(1)
  ROOT %d = f32[8,32,16]{2,1,0} dot(%p, %q), lhs_batch_dims={0}, lhs_contracting_dims={2}
}
"""
FUSED = "%f = (bf16[1024]{0}, f32[64,1024]{1,0}) fusion(%t, %n, %m), kind=kLoop, calls=%sliced"
DOT = "%g = f32[8,32,16]{2,1,0} fusion(%u, %v), kind=kCustom, calls=%product"
ARRAYS = (
    "%t = f32[64,1024]{1,0} parameter(1)",
    "%n = s32[] parameter(2)",
    "%m = bf16[16]{0} parameter(3)",
    "%u = bf16[8,32,64]{2,1,0} parameter(4)",
    "%v = bf16[8,64,16]{2,1,0} parameter(5)",
)


def of_gpu(*computations: str) -> dict:
    return program_costs(HEAD + "".join(computations), H100)


def test_a_kernel_of_a_gpu_moves_what_it_slices_and_updates_not_whole_arrays():
    found = of_gpu(SLICED, entry(*ARRAYS, FUSED))
    row, low, rest = 4 * 1024, 2 * 1024, 4 + 0  # the index is read, %b is not
    assert found["launches"] == 1
    assert found["moved_bytes"] == row + low + row + rest


def test_products_of_a_gpu_count_inside_kernels_and_loops():
    inside = body("inside", *ARRAYS, DOT)
    found = of_gpu(PRODUCT, inside, condition("cond", 5), entry(loop("w", "cond", "inside")))
    assert found["launches"] == 5
    assert found["product_flops"] == 5 * 2 * 8 * 32 * 16 * 64
    assert found["moved_bytes"] == 5 * (2 * 8 * 32 * 64 + 2 * 8 * 64 * 16 + 4 * 8 * 32 * 16)
    assert found["seconds"] == pytest.approx(found["moved_bytes"] / H100.bandwidth)


def test_calls_of_libraries_count_products_where_they_say_their_axes():
    config = (
        'backend_config={"gemm_backend_config":{"dot_dimension_numbers":'
        '{"lhs_contracting_dimensions":["2"],"rhs_contracting_dimensions":["1"]}}}'
    )
    called = '(f32[8,32,16]{2,1,0}, s8[64]{0}) custom-call(%u, %v), custom_call_target="'
    found = of_gpu(
        entry(
            *ARRAYS,
            f'%c = {called}__cublas$gemm", {config}',
            f'%k = {called}__cudnn$fmha", backend_config={{}}',
        )
    )
    assert found["product_flops"] == 2 * 8 * 32 * 16 * 64
    assert found["unknown_products"] == {"__cudnn$fmha": 1}


@pytest.mark.parametrize(
    "kernel, rows, products", [("forward", 256, 2), ("of_keys", 384, 4), ("of_bias", 256, 2)]
)
def test_products_of_our_own_kernels_follow_from_their_operands(kernel, rows, products):
    """Two rows of 256 tokens after a window of 128, two heads of 64, tiles of 128 by 256."""
    operands = ("bf16[2,256,2,64]", "bf16[2,384,2,64]", "bf16[2,384,2,64]", "f32[2,64,320]")
    lines = [f"%x{n} = {each}{{0}} parameter({n})" for n, each in enumerate(operands)]
    call = 'custom-call(%x0, %x1, %x2, %x3), custom_call_target="mosaic_gpu_v2", '
    name = f'metadata={{op_name="jit(f)/attention_{kernel}/mpmd_map"}}'
    found = of_gpu(entry(*lines, f"%k = f32[4]{{0}} {call}{name}"))
    assert found["product_flops"] == products * 2 * (2 * rows * 2 * 64) * 256
    assert found["unknown_products"] == {}
