"""The device seam: CUDA sources, and two drivers that run them."""
