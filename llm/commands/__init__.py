"""The commands ``nashpo train`` and ``nashpo arena``."""
