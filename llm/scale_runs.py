"""The runs that `nashpo.llm.scale_page` is about: the published ones on 8 GPUs, and 70B on 8 machines.

Lengths are in tokens, K responses per prompt; counts are per iteration. Nothing here imports torch.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from nashpo.llm.flops import SHAPES, Batch, Rows, Shape, packed
from nashpo.llm.hardware import HARDWARE, Cluster, Efficiency, Hardware
from nashpo.llm.lengths import Lengths, capped, spread
from nashpo.llm.scale import (
    PAIRRM,
    Fit,
    JudgeShape,
    Phase,
    exchange,
    judging,
    pair_lm,
    scoring,
    training,
)
from nashpo.llm.scale_sampling import Sampler, sampling

ASSUMED = Lengths(spread(160, 1.0), capped(spread(480, 0.6), 2048))
"""For prompts like UltraFeedback's: an assumption. The models' answers on AlpacaEval have 1,676 to 2,163 characters in
SPPO's paper, 420 to 540 tokens of four."""
ALPACA_EVAL = Lengths(
    (6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 32, 37, 42, 50, 58, 73, 96, 190),
    (4, 12, 22, 32, 44, 56, 68, 80, 92, 104, 117, 132, 151, 178, 220, 268, 336, 421, 560, 841),
)
"""Twenty quantiles of 805 instructions and of the 9,652 answers of twelve models to them, four characters a token."""
LONG_PROMPTS = Lengths((512,), (128,))
"""Where sharing a prompt can matter."""


@dataclass(frozen=True)
class Run:
    """A run of self-play.

    Attributes
    ----------
    title : str
    shape : Shape
    judge : JudgeShape
    hardware : Hardware
    gpus : int
    prompts, iterations, K : int
    trained : int
        Responses per prompt that the loss reads: no others go through the model.
    stages : int
        Fits per iteration.
    scored : int
        Policies per iteration whose log-probabilities are computed; one fewer in the first, where the policy that the
        run starts from is the reference.
    fit : Fit
    sampler : Sampler
    lengths : Lengths
    questions : float, optional
        Of the judge per prompt; every pair in both orders by default.
    """

    title: str
    shape: Shape
    judge: JudgeShape
    hardware: Hardware
    gpus: int = 8
    prompts: int = 20_000
    iterations: int = 3
    K: int = 5
    trained: int = 2
    stages: int = 1
    scored: int = 2
    fit: Fit = Fit(updates=20_000 / 64)
    sampler: Sampler = Sampler()
    lengths: Lengths = ASSUMED
    questions: float | None = None

    def asked(self) -> float:
        """Questions to the judge per prompt."""
        return self.K * (self.K - 1) if self.questions is None else self.questions

    def batch(self, K: int, layout: Callable[[Shape, Rows], Batch] = packed) -> Batch:
        """All prompts of one iteration with K responses each."""
        sample = 400  # prompts; a multiple of both lists' lengths, so that every length comes equally often
        return layout(self.shape, self.lengths.rows(sample, K)).times(self.prompts / sample)


def phases(run: Run, efficiency: Efficiency | None = None) -> list[Phase]:
    """All iterations of a run, one entry per phase."""
    cluster = Cluster(run.hardware, run.gpus, efficiency or Efficiency())
    read = run.batch(run.trained)
    one = [
        sampling(run.shape, run.lengths, run.prompts, run.K, cluster, run.sampler),
        judging(run.judge, run.lengths, run.prompts * run.asked(), cluster),
        scoring(run.shape, read, cluster).times(run.scored - 1 / run.iterations),
        training(run.shape, read, run.fit, cluster).times(run.stages),
        exchange(run.shape),
    ]
    return [phase.times(run.iterations) for phase in one]


SPPO = Run("SPPO, Mistral-7B, PairRM, 8 × A100-80", SHAPES["mistral-7b"], PAIRRM, HARDWARE["a100-80"])
ONPO = Run(
    "ONPO, Llama-3-8B, 8B pair judge, 8 × A100-40",
    SHAPES["llama-3-8b"],
    pair_lm(SHAPES["llama-3-8b"]),
    HARDWARE["a100-40"],
    K=8,
    stages=2,
    scored=3,
    fit=Fit(states=8, micro=4096, updates=20_000 / 128),
)
SPPO_70B = replace(
    SPPO,
    title="SPPO as above, 70B, 8 × 8 H100",
    shape=SHAPES["llama-3-70b"],
    hardware=HARDWARE["h100"],
    gpus=64,
    sampler=Sampler(split=4),
)
ONPO_70B = replace(
    ONPO,
    title="ONPO as above, 70B, 8 × 8 H100",
    shape=SHAPES["llama-3-70b"],
    hardware=HARDWARE["h100"],
    gpus=64,
    fit=Fit(states=8, updates=20_000 / 128),
    sampler=Sampler(split=4),
)
RUNS = (SPPO, ONPO, SPPO_70B, ONPO_70B)
"""SPPO's protocol is the paper's (arXiv:2405.00675, section 5), which names A100 without their memory. ONPO's (arXiv:
2502.16852) is from summaries; its prompts and K are our recipe's, as in INPO."""
