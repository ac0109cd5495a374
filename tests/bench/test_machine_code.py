"""bench/machine_code.py reads what nvdisasm prints."""

from machine_code import Loop, hot_loop, kernels

TEXT = """
.section .text.first,"ax",@progbits
.text.first:
        /*0000*/                   S2R R0, SR_TID.X ;
.L_x_1:
        /*0010*/                   LDG.E.128.CONSTANT R4, [R2.64] ;
        /*0020*/                   LDG.E.128.CONSTANT R8, [R2.64+0x200] ;
        /*0030*/                   LDG.E.U16.CONSTANT R12, [R14.64] ;
        /*0040*/                   IDP.4A.S8.S8 R16, R7, R9, R16 ;
        /*0050*/                   LDG.E.128.CONSTANT R20, [R2.64+0x400] ;
        /*0060*/                   IDP.4A.S8.S8 R16, R20.reuse, R9, R16 ;
        /*0070*/              @!P0 BRA `(.L_x_2) ;
        /*0080*/               @P1 BRA `(.L_x_1) ;
.L_x_2:
        /*0090*/                   EXIT ;
.L_x_3:
        /*00a0*/                   BRA `(.L_x_3);
.section .text.second,"ax",@progbits
.text.second:
.L_x_4:
        /*0000*/                   FFMA R1, R2, R3, R1 ;
        /*0010*/                   FFMA R1, R2, R3, R1 ;
        /*0020*/                   FFMA R1, R2, R3, R1 ;
.L_x_5:
        /*0030*/                   LDS.128 R4, [R2] ;
        /*0040*/                   HFMA2 R1, R4, R5, R1 ;
        /*0050*/                   BRA.U UP0, `(.L_x_5) ;
        /*0060*/               @P0 BRA `(.L_x_4) ;
.section .text.third,"ax",@progbits
.text.third:
        /*0000*/                   FFMA R1, R2, R3, R1 ;
"""


def test_the_hot_loop_is_counted() -> None:
    loops = {name: hot_loop(lines) for name, lines in kernels(TEXT).items()}
    assert loops["first"] == Loop(length=8, products=2, wide_loads=3, other_loads=1, under_way=2)
    # the outer loop has more products, but they are passed less often
    assert loops["second"] == Loop(length=3, products=1, wide_loads=0, other_loads=1, under_way=0)
    assert loops["third"] is None
