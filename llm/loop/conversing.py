"""Engines of a run, of answers one by one or of whole conversations, and a judge that is ready for either.

Lengths are in tokens.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from nashpo.llm.conversation.config import ConversationConfig
from nashpo.llm.conversation.levels import LEVELS, Level, Trajectory
from nashpo.llm.conversation.rollout import ConversationEngine, Limits
from nashpo.llm.conversation.turns import TurnWriter
from nashpo.llm.conversation.user import User
from nashpo.llm.conversation.users.config import TableUserConfig
from nashpo.llm.encoding import Encoder
from nashpo.llm.engines.config import SamplingConfig
from nashpo.llm.engines.engine import Engine, EngineContext
from nashpo.llm.judges.function import FunctionJudge
from nashpo.llm.judges.judge import Judge
from nashpo.llm.judges.scoring import ScoringJudge
from nashpo.llm.loop.ranks import ALONE, Ranks
from nashpo.llm.loop.start import TINY
from nashpo.llm.recipe.schema import Recipe

USER = "user.json"
"""Within `TINY`: the other side that a built model brings."""


@dataclass(frozen=True)
class Talk:
    """Conversations as a recipe has them: with any model that takes part, and with one other side.

    Attributes
    ----------
    config : ConversationConfig
    user : User
    whole : int, optional
        Longest sequence that is trained on.
    """

    config: ConversationConfig
    user: User
    whole: int | None

    @classmethod
    def of(cls, run: Path, recipe: Recipe, device: str) -> "Talk | None":
        """Those of a run; of a model that was built with the other side that it brought. None without conversations."""
        config = recipe.conversation
        if config is None:
            return None
        user = TableUserConfig(path=str(run / TINY / USER)) if config.user is None else config.user
        return cls(config, user.build(device), recipe.training.get("max_length", 1024))

    def engine(
        self,
        sampling: SamplingConfig,
        context: EngineContext,
        encoder: Encoder,
        positions: int | None,
        draws: tuple[int, ...],
    ) -> Engine:
        """Draws conversations by the engine of ``sampling``, checked.

        Parameters
        ----------
        sampling : SamplingConfig
        context : EngineContext
        encoder : Encoder
        positions : int, optional
            The model's.
        draws : tuple of int
        """
        config = self.config
        limits = Limits(sampling.max_new_tokens, config.max_tokens, _least(positions, self.whole), config.stop)
        settings = {"text_template": config.text_template, "stop": list(config.stop), "max_tokens": config.max_tokens}
        about = {"turns": config.turns, **settings}
        inner, writer = replace(sampling, K=1).build(context), TurnWriter(encoder, config.text_template)
        return _checked(ConversationEngine(inner, self.user, writer, draws, limits, about))


@dataclass(frozen=True)
class Engines:
    """What draws responses for training and for evaluation, and what of them is fitted."""

    training: Engine | None
    evaluation: Engine | None
    level: Level


def engines_of(
    run: Path,
    recipe: Recipe,
    context: EngineContext,
    encoder: Encoder,
    positions: int | None,
    needed: bool,
) -> Engines:
    """The engines, checked.

    Parameters
    ----------
    run : path
    recipe : Recipe
    context : EngineContext
    encoder : Encoder
    positions : int, optional
        The model's.
    needed : bool
        Whether the rule samples.

    Raises
    ------
    ValueError
        Where one of them could not work.
    """
    sampling = recipe.sampling
    if sampling is None:
        return Engines(None, None, Trajectory())
    own = None if recipe.evaluation is None else recipe.evaluation.K
    talk = Talk.of(run, recipe, str(context.device))
    if talk is None:
        evaluation = None if own is None else _checked(replace(sampling, K=own).build(context))
        return Engines(_checked(sampling.build(context)) if needed else None, evaluation, Trajectory())
    draws = talk.config.draws(sampling.K)
    training = talk.engine(sampling, context, encoder, positions, draws) if needed else None
    evaluation = None if own is None else talk.engine(sampling, context, encoder, positions, talk.config.alone(own))
    return Engines(training, evaluation, LEVELS[talk.config.level](draws))


def ready_judge(judge: Judge, conversations: bool, ranks: Ranks = ALONE) -> None:
    """Tell a judge whether whole conversations are compared, and check it, for which it may read its weights.

    Raises
    ------
    ValueError
        Where it could not work.
    """
    if isinstance(judge, FunctionJudge):
        judge.conversations = conversations
    ranks.first(judge.check)
    if conversations and isinstance(judge, ScoringJudge):
        ranks.first(judge.check_conversation)


def _least(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _checked(engine: Engine) -> Engine:
    engine.check()
    return engine
