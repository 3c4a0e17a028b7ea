"""The loss where every answer of a conversation takes the step by itself (``conversation.level: state``).

An answer's payoff is then the mean win rate of the conversations below it against the opponent's conversations *from
the prompt*. Who beat whom among the answers at one state is another payoff, against an opponent who shares that state;
its differences may even have the other sign. And the mean payoff at a later state is that state's value, and not ½. So
neither the labelled margin nor SPPO's constant for log Z has the step on Q as its minimizer at later states. The
difference of two payoffs has, and at the prompt, on all pairs, it has the gradient of the labelled margin.

A reward is about one response and not about an opponent: losses on rewards stay as they are. ``build`` imports torch.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nashpo.llm.recipe.objectives import Default, ObjectiveSpec

if TYPE_CHECKING:
    from nashpo.core.rules import Rule
    from nashpo.llm.conversation.config import ConversationConfig
    from nashpo.llm.objectives import Objective
    from nashpo.llm.stages import Job


@dataclass(frozen=True)
class AtStates(ObjectiveSpec):
    """A recipe's loss at the level of states: for the default on win rates, the difference of two payoffs.

    Parameters
    ----------
    given : ObjectiveSpec
        The recipe's own.
    """

    given: ObjectiveSpec

    def build(self, rule: "Rule", job: "Job") -> "Objective":
        """The objective for one stage.

        Raises
        ------
        ValueError
            As the recipe's own; if it was chosen and is wrong at later states.
        """
        from nashpo.llm.objectives import Half, Labelled, Pairwise, Pointwise

        found = self.given.build(rule, job)
        half = isinstance(found, Pointwise) and isinstance(found.normalizer, Half)
        if not (half or isinstance(found, Labelled)):
            return found
        assert isinstance(found, Pointwise | Labelled)
        if not isinstance(self.given, Default):
            what = "SPPO's constant for log Z" if half else "the labelled margin"
            raise ValueError(
                f"{what} is wrong at conversation.level = state, where a later answer's payoff is no comparison with"
                " the other answers at its state: set objective=pairwise, or leave objective out"
            )
        return Pairwise(found.pairs)


def at_level(given: ObjectiveSpec, talk: "ConversationConfig | None") -> ObjectiveSpec:
    """The recipe's loss, for what takes the step there."""
    return given if talk is None or talk.level == "trajectory" else AtStates(given)
