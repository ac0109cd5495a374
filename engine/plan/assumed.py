"""What the model of a card assumes, since no card has run hotcold yet; `bench/gpu.py` measures what belongs here."""

REACHED = 0.85
"""Of a card's bandwidth, by a kernel that streams weights."""
REACHED_PROMPT = 0.4
"""Of what a card's units could multiply, by a prompt's kernels; the rest is what they do beside the products."""
DOTS_A_CLOCK = 64
"""Four-wide int8 dot products (`__dp4a`) that a multiprocessor starts in a clock."""
GAP = 3e-6
"""Seconds of a launch within a graph beside its bytes: its start, its tail and what small kernels wait for."""
GRAPH = 6e-6
"""Seconds of the host for a graph's launch."""
COPY = 10e-6
"""Seconds of a copy of some KB, with the wait for it."""
READ = 2e-6
"""Seconds that a merge takes longer for some KB that it reads over the bus: a way there and back, and the bytes."""
HOST_GBPS, HOST_GFLOPS = 40.0, 600.0
"""What a CPU of a few fast cores reads, and multiplies in a prompt's tiles."""
