"""What a packaged recipe says about its needs at its head: hardware, memory and time, predicted.

Lengths are in tokens, sizes in GiB, times in hours. The prompts are not read: their number and mean length are assumed.
"""

from nashpo.llm.hardware import GIB, HARDWARE, Cluster
from nashpo.llm.lengths import capped
from nashpo.llm.recipe import outlook, timing
from nashpo.llm.recipe.counting import work
from nashpo.llm.recipe.footprint import Size
from nashpo.llm.recipe.schema import Recipe
from nashpo.llm.scale_memory import training_memory
from nashpo.llm.scale_runs import ASSUMED

PROMPTS = 20_000
"""Of one iteration."""


def needs(recipe: Recipe, size: Size) -> str:
    """Three sentences: memory and GPUs of the training, and the time on the fewest H200 that it fits.

    Parameters
    ----------
    recipe : Recipe
    size : Size
        Of a model whose shape is known.

    Raises
    ------
    ValueError
        If the shape is not known.
    """
    if size.shape is None:
        raise ValueError(
            f"model.path = {recipe.model.path}: nothing can be predicted, it is no decoder of a known shape"
        )
    mean, count = ASSUMED.prompt, recipe.iterations.count
    fit = timing.fit_of(recipe, size, 1, outlook.micro_batch(recipe, mean))
    most = sum(training_memory(size.shape, fit).values()) / GIB
    kinds = outlook.hardware(recipe, size, mean)
    gpus = int(kinds.split(" ")[0])
    time = timing.predict(
        recipe, size, work(recipe.rule, count), [PROMPTS] * count, mean, Cluster(HARDWARE["h200"], gpus), ""
    )
    one, all_long = (f"{seconds / 3600:.0f} h" for seconds in time.seconds["in all"])
    typical = sum(capped(ASSUMED.responses, timing.longest(recipe))) / len(ASSUMED.responses)
    return (
        f"Predicted and not measured: training takes at most {most:.0f} GiB on one GPU; everything sharded where there"
        f" are several, it fits {kinds}. {count} iterations of {PROMPTS:,} prompts of {mean:.0f} tokens take {one} on"
        f" {gpus} × h200 with responses of {typical:.0f} tokens in the mean, {all_long} if all have"
        f" {timing.longest(recipe):,}. llm/SCALE.md says from what."
    )
