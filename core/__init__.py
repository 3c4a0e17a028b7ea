"""The shared ground of NashPO: rules as data, losses, theorems and the one self-play loop (no numpy, no torch)."""
