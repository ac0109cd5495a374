"""For a budget: where every weight, neuron and intermediate goes, and why."""
