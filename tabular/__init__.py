"""Exact games: equilibria, duality gaps, and every update rule played on them (no torch)."""

from nashpo.tabular.equilibrium import Equilibrium, nash
from nashpo.tabular.game import Game
from nashpo.tabular.gap import best_response, duality_gap, kl_to
from nashpo.tabular.play import bounds, play, tune
from nashpo.tabular.run import Run

__all__ = ["Equilibrium", "Game", "Run", "best_response", "bounds", "duality_gap", "kl_to", "nash", "play", "tune"]
