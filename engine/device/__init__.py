"""The device's side: slabs, launches, their lowering, the steps of a run."""
