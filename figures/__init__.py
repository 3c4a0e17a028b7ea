"""One line for every figure of NashPO."""
