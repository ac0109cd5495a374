"""The numbers of activations.h, as kernels take them."""

ACTIVATIONS = {"relu": 0, "silu": 1, "relu_both": 2, "gelu": 3}
