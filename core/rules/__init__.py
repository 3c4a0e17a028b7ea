"""The update rules. A new one is one file here and one line in `RULES`; `Rule` shows how to write one's own."""

from nashpo.core.rules.comal import COMAL
from nashpo.core.rules.dpo import DPO, IterativeDPO
from nashpo.core.rules.egpo import EGPO
from nashpo.core.rules.form import Copy, Form, Payoff, Stage, critic, reward, win
from nashpo.core.rules.inpo import INPO
from nashpo.core.rules.ipo import IPO, IterativeIPO
from nashpo.core.rules.nash_md import NashMD
from nashpo.core.rules.onpo import ONPO
from nashpo.core.rules.rule import Aim, Rule
from nashpo.core.rules.spac import SPAC
from nashpo.core.rules.sppo import SPPO

RULES: dict[str, type[Rule]] = {
    rule.name: rule for rule in (SPPO, ONPO, INPO, NashMD, EGPO, COMAL, IPO, IterativeIPO, DPO, IterativeDPO, SPAC)
}
"""Every rule of the package by its name on the command line; those that need data play on data sets only."""

__all__ = [
    "COMAL",
    "DPO",
    "EGPO",
    "INPO",
    "IPO",
    "ONPO",
    "RULES",
    "SPAC",
    "SPPO",
    "Aim",
    "Copy",
    "Form",
    "IterativeDPO",
    "IterativeIPO",
    "NashMD",
    "Payoff",
    "Rule",
    "Stage",
    "critic",
    "reward",
    "win",
]
