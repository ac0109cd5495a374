"""The seam to a device: memory, launches, streams; CuPy's driver and NVRTC behind it."""
