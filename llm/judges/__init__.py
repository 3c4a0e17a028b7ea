"""Judges: which of two responses to a prompt is better, as a probability, and K x K win matrices of them."""
