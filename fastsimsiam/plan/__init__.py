"""What every batch holds, as pure functions of (seed, epoch, sample index, view): no state."""
