"""The emulated device: the CUDA sources compiled for the CPU by g++."""
