"""Multi-turn games: contextual decision processes of finite horizon, their ends compared by a preference (no torch).

An average over policies is one over *trajectories*, one policy is drawn per episode: `nashpo.tabular.trees.mixture`.
"""

from nashpo.tabular.trees.equilibrium import TreeEquilibrium, confined_value, nash
from nashpo.tabular.trees.game import TreeGame
from nashpo.tabular.trees.gap import best_response, duality_gap, win_rate
from nashpo.tabular.trees.greedy import greedy
from nashpo.tabular.trees.leaf_game import behavior_policy, leaf_game, leaf_policy
from nashpo.tabular.trees.mixture import Mixture
from nashpo.tabular.trees.mtpo import MTPO
from nashpo.tabular.trees.play import TreeRun, play
from nashpo.tabular.trees.values import q_values

__all__ = [
    "MTPO",
    "Mixture",
    "TreeEquilibrium",
    "TreeGame",
    "TreeRun",
    "behavior_policy",
    "best_response",
    "confined_value",
    "duality_gap",
    "greedy",
    "leaf_game",
    "leaf_policy",
    "nash",
    "play",
    "q_values",
    "win_rate",
]
