"""Rounds rows of numbers to block types: Numba kernels over all cores, each type's bytes as llama.cpp makes them.

`rows.py` is the entry; a file a family has the kernels, `search.py` and `affine.py` what they search scales
with, `ref.py` the definitions in NumPy. All arithmetic is float32 and every sum in order, as in ggml without
contraction to fused multiply-adds, so that blocks are equal to the bit.
"""
