"""Which neurons of a model work, on texts of one's own: counted, looked at, and kept where a plan finds it."""
