"""The other side of a conversation: a script, a table of known probabilities, a function, a model."""
