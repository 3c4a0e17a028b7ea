"""The phase machine behind ``nashpo train``: self-play on a language model that goes on where it was stopped."""
