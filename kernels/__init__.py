"""Kernels: `ref` says what is right, `cpu` and `cuda` do it fast."""
