"""Laws of counting instructions, on schedules written by hand in the compiler's form."""

import pytest

from block_recurrent.lab.compile.schedules import count_cycles, read_cycles

LIMIT = "%p1 = scmp.ge.s32.totalorder %s1, {} /* loop exit test */  ;;  %s2 = smov.u32 %s3"
KERNEL = f"""
= control target key start
LB: loop body
= control target key end

     0   :  {{ %s0 = smov.u32 0 }}
   0x1 LB: > {{ %s4 = sadd.s32 1, %s1 }} /* Start region 1 */
   0x2   :  {{ %5 = sbr.rel (%p0) target = $region2 }}
   0x3   :  {{}}
   0x4 PF: > {{ %s6 = sadd.s32 1, %s1 }}
   0x5 LB: >> {{ %v7 = vld [vmem:[%s4]] }}
   0x6   : >> {{ %v8 = vmul.f32 %v7, %v7 }}
   0x7   : >> {{ {LIMIT.format(3)} }}
   0x8 LB: >> {{ {LIMIT.format(2)} }}
   0x9   : > {{ {LIMIT.format(10)} }}
   0xa   :  {{ %9 = sbr.rel (!%p1) target = $region1 }}
   0xb   :  {{}} /* exit bundle: %attend.3 = custom-call(%x) */
"""


def test_bundles_count_as_often_as_their_loops_run():
    """An empty bundle, and one that is not marked, belong to the loop that they are in."""
    assert count_cycles(KERNEL) == 1 + 10 * (1 + 2 + 1 + 3 * 3 + 2 * 1 + 1) + 2


def test_a_loop_without_a_limit_is_not_guessed():
    assert count_cycles(KERNEL.replace("/* loop exit test */", "", 1)) is None


@pytest.mark.parametrize("name", ["attend.3", "jvp_attend_.1"])
def test_files_are_read_once_by_the_names_of_instructions(tmp_path, name):
    (tmp_path / f"1796078460029178032-{name}-01-final_bundles.txt").write_text(KERNEL)
    (tmp_path / f"1796078460029178032-{name}-00-schedule-analysis_final_bundles.txt").write_text("")
    (tmp_path / "1796078460029178032-TLP-hlo.txt").write_text("")
    assert read_cycles(tmp_path) == {name: count_cycles(KERNEL)}
    assert read_cycles(tmp_path) == {}
