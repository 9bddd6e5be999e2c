"""The contents of all batches, as pure functions of (seed, epoch, sample index, view): no state."""
