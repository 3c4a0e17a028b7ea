"""How a model reads and ends text, found without its weights: from its configuration and its tokenizer."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from transformers import AutoConfig, GenerationConfig

from nashpo.llm.encoding import Encoder
from nashpo.llm.engines.engine import EngineContext
from nashpo.llm.loop.loading import device, encoder_of, end_ids
from nashpo.llm.recipe.model_limits import Limits
from nashpo.llm.recipe.schema import ModelSpec


@dataclass(frozen=True)
class Reading:
    """What an engine is told of a model.

    Attributes
    ----------
    encoder : Encoder
    context : EngineContext
    limits : Limits
        Its positions, and its embeddings, which may be more than its tokenizer has tokens.
    """

    encoder: Encoder
    context: EngineContext
    limits: Limits


def reading(spec: ModelSpec, path: str, tokenizer: Any) -> Reading:
    """How the model at ``path`` reads.

    Parameters
    ----------
    spec : ModelSpec
    path : str
        A folder, or a name on the hub.
    tokenizer
        A transformers tokenizer with a pad token.

    Raises
    ------
    ValueError
        If it has no configuration.
    """
    options: dict[str, Any] = {"revision": spec.revision} if path == spec.path and spec.revision is not None else {}
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=spec.trust_remote_code, **options)
    except (OSError, ValueError) as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(f"no model at {path} ({first})") from None
    try:
        generation = GenerationConfig.from_pretrained(path, **options)
    except OSError:
        generation = GenerationConfig.from_model_config(config)
    ends = end_ids(tokenizer, SimpleNamespace(generation_config=generation))
    limits, words = Limits.of(config), len(tokenizer)
    drawn = words if limits.vocabulary > words else None
    context = EngineContext(tokenizer, ends, tokenizer.pad_token_id, drawn, device(), lambda count: None)
    return Reading(encoder_of(spec, tokenizer, ends), context, limits)
