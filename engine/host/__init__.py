"""The CPU's side: views of the map, op records, their lowering."""
