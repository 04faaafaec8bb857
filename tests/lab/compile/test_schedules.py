"""Laws of counting instructions, on schedules written by hand in the compiler's form."""

import pytest

from block_recurrent.lab.compile.schedules import count_cycles, read_cycles

LIMIT = "%p{} = scmp.ge.s32.totalorder %s1, {} /* loop exit test */  ;;  %s2 = smov.u32 %s3"
BRANCH = "%9 = sbr.rel (!%p{}) target = $region1"
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
   0x7   : >> {{ {LIMIT.format(1, 3)} }}
   0x8   : > {{ %s9 = sadd.s32 (%p1) 1, %s4 }}
   0x9   : >> {{ {BRANCH.format(1)} }}
   0xa   :  {{}}
   0xb LB: >> {{ {LIMIT.format(12, 2)}  ;;  {BRANCH.format(12)} }}
   0xc   : > {{ {LIMIT.format(13, 10)} }}
   0xd   : > {{ {BRANCH.format(13)} }}
   0xe   :  {{ %s10 = smov.u32 0 }}
   0xf   :  {{}} /* exit bundle: %attend.3 = custom-call(%x) */
"""


def test_bundles_count_as_often_as_their_loops_run():
    """A loop lasts until its branch, whatever the marks of the bundles in between."""
    assert count_cycles(KERNEL) == 1 + 10 * (1 + 2 + 1 + 3 * 6 + 2 * 1 + 2) + 2


@pytest.mark.parametrize("missing", ["/* loop exit test */", "sbr.rel (!%p1)"])
def test_a_loop_without_a_limit_or_an_end_is_not_guessed(missing):
    assert count_cycles(KERNEL.replace(missing, "", 1)) is None


@pytest.mark.parametrize("name", ["attend.3", "jvp_attend_.1"])
def test_files_are_read_once_by_the_names_of_instructions(tmp_path, name):
    (tmp_path / f"1796078460029178032-{name}-01-final_bundles.txt").write_text(KERNEL)
    (tmp_path / f"1796078460029178032-{name}-00-schedule-analysis_final_bundles.txt").write_text("")
    (tmp_path / "1796078460029178032-TLP-hlo.txt").write_text("")
    assert read_cycles(tmp_path) == {name: count_cycles(KERNEL)}
    assert read_cycles(tmp_path) == {}
