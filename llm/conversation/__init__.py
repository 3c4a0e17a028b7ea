"""Conversations as responses: several turns of the assistant with the other side's between them."""
