"""Two phases of a stage: log-probabilities of its base policies on the responses, then the fit itself.

Base log-probabilities are computed once, by the pass that the trainer would use, and stored: while a stage is trained
its own model is the only one in memory. Shapes: B prompts, K responses each; log-probabilities (B, K) float64 in nats.
"""

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PrinterCallback

from nashpo.core.store import replace_file
from nashpo.llm.config import SelfPlayConfig
from nashpo.llm.known import stage_logprobs
from nashpo.llm.loop.checkpoints import CompleteCheckpoints, LogFile, last_complete
from nashpo.llm.loop.hub import OPTIONS
from nashpo.llm.loop.phase import Phase
from nashpo.llm.loop.policies import ORIGINS, RunPolicies, label
from nashpo.llm.loop.ranks import ALONE, Ranks
from nashpo.llm.objectives import Objective
from nashpo.llm.preferences import PreferenceData
from nashpo.llm.recipe.training import arguments, shared
from nashpo.llm.responses import Responses
from nashpo.llm.sampling import derived_seed
from nashpo.llm.sharding import whole_state
from nashpo.llm.stages import Job
from nashpo.llm.trainer import SelfPlayTrainer
from nashpo.llm.trainer_setup import layout_of

log = logging.getLogger(__name__)
LOG = "log.jsonl"
CARD = "README.md"


@dataclass(frozen=True)
class Fitting:
    """How the stages of a run are trained.

    Attributes
    ----------
    training : mapping
        Fields of SelfPlayConfig.
    objective : callable
        From a job to its loss.
    tokenizer
    seed : int
        Of the run.
    quiet : bool
        Without progress bars.
    ranks : Ranks
        The processes that share the work of the run.
    """

    training: Mapping[str, Any]
    objective: Callable[[Job], Objective]
    tokenizer: Any
    seed: int
    quiet: bool
    ranks: Ranks = ALONE

    def arguments(self, folder: Path, key: str) -> SelfPlayConfig:
        """The trainer's arguments for one piece of work."""
        options = {k: v for k, v in arguments(self.training).items() if k not in OPTIONS}
        if not torch.cuda.is_available():
            options.setdefault("use_cpu", True)
            options.setdefault("dataloader_pin_memory", False)
        return SelfPlayConfig(
            **{
                "disable_tqdm": self.quiet,
                **options,
                **shared(self.training, self.ranks.world),
                "output_dir": str(folder),
                "seed": derived_seed(self.seed, key) % 2**31,
                "save_total_limit": None,  # older checkpoints go when the newer one is complete, not before
            }
        )


def base_logprobs(
    folder: Path,
    key: str,
    policies: RunPolicies,
    names: Sequence[str],
    responses: Responses,
    fitting: Fitting,
    progress: Callable[[str, int, int], None],
    earlier: Sequence[Path] = (),
) -> dict[str, Tensor]:
    """log π of every response under each of the policies: computed, taken over or read back.

    Parameters
    ----------
    folder : path
        A file per policy.
    key : str
    policies : RunPolicies
    names : sequence of str
        Two may be one policy (the start and the reference): its numbers are computed once.
    responses : Responses
    fitting : Fitting
    progress : callable
    earlier : sequence of path
        Folders in which the very same responses were scored before: a policy's numbers are taken over from there.
    """
    ranks = fitting.ranks
    phase = Phase(folder, "logprobs", key, ranks)
    if not phase.committed:
        phase.begin(policies=list(names))
        progress("logprobs", 0, len(names))
        args = fitting.arguments(folder, key)
        for number, name in enumerate(names):
            path = folder / f"{label(name)}.safetensors"
            same = [other for other in (name, *ORIGINS) if policies.path(other) == policies.path(name)]
            if not ranks.first(partial(_is_there, path, same, (folder, *earlier))):
                with ranks.together(), policies.use(name) as model:
                    found = _logprobs(model, responses, args, fitting)
                if ranks.is_first:
                    aside = path.with_suffix(".part")
                    save_file({"logprobs": found}, str(aside))
                    aside.replace(path)
            progress("logprobs", number + 1, len(names))
        phase.commit(policies=list(names), counts={"policies": len(names), "prompts": len(responses)})
    return {name: load_file(str(folder / f"{label(name)}.safetensors"))["logprobs"] for name in names}


def _is_there(path: Path, same: Sequence[str], folders: Sequence[Path]) -> bool:
    """Whether a file of log-probabilities is there, if need be as a copy of what was found under another name."""
    for source in (folder / f"{label(name)}.safetensors" for folder in folders for name in same):
        if not path.exists() and source.exists():
            replace_file(path, source.read_bytes())
    return path.exists()


def _logprobs(model: torch.nn.Module, responses: Responses, args: SelfPlayConfig, fitting: Fitting) -> Tensor:
    """By the pass of the trainer under these arguments. Batches are dealt to the processes whole, so that the numbers
    are the same bit for bit on any number of them."""
    ranks = fitting.ranks
    layout = layout_of(args, fitting.tokenizer)
    lower = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    autocast = None if lower is None else torch.autocast(next(model.parameters()).device.type, lower)
    size = args.precompute_ref_batch_size or args.per_device_eval_batch_size
    batches = [range(start, min(start + size, len(responses))) for start in range(0, len(responses), size)]
    mine = [b for batch in ranks.deal(batches) for b in batch]
    found = torch.zeros(0, 0, dtype=torch.float64)
    if mine:
        part = Responses.drawn([responses.sequences[b] for b in mine])
        found = stage_logprobs(model, part, layout, size, autocast)
    result = torch.zeros_like(responses.weights)
    for rows, values in ranks.gather((mine, found.cpu())):
        result[rows, : values.shape[1]] = values
    return result


def train(
    folder: Path,
    result: Path,
    key: str,
    policies: RunPolicies,
    job: Job,
    data: PreferenceData,
    fitting: Fitting,
) -> None:
    """Fit one stage and write its policy, or go on where that was stopped.

    Parameters
    ----------
    folder : path
        For checkpoints and the log.
    result : path
        For the weights.
    key : str
    policies : RunPolicies
    job : Job
    data : PreferenceData
        With the log-probabilities of the base policies.
    fitting : Fitting
    """
    ranks = fitting.ranks
    model_phase = Phase(result, "model", key, ranks)
    phase = Phase(folder, "train", key, ranks)
    if not model_phase.committed:
        phase.begin(stage=job.stage.writes)
        args = fitting.arguments(folder, key)
        checkpoint = ranks.first(lambda: last_complete(folder))
        torch.manual_seed(args.seed)  # a fresh adapter draws its weights
        with policies.train(job.start) as model:
            trainer = SelfPlayTrainer(
                model,
                args=args,
                train_dataset=data,
                processing_class=fitting.tokenizer,
                job=job,
                objective=fitting.objective(job),
                callbacks=[CompleteCheckpoints(ranks), log_file := LogFile(folder / LOG)],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            if ranks.is_first:
                log_file.write(trainer.state.log_history)
            steps = trainer.state.global_step
            state = whole_state(trainer, keep=ranks.is_first)
            del trainer
            _write_model(model_phase, result, policies, model, state, steps)
    if not phase.committed:
        steps = model_phase.manifest.get("steps")  # not there in runs of earlier versions
        counts = {"prompts": len(data)} | ({} if steps is None else {"steps": steps})
        phase.begin(stage=job.stage.writes)
        phase.commit([LOG], stage=job.stage.writes, counts=counts)
    if ranks.is_first:  # also what a kill behind the last commit left
        for old in folder.glob("checkpoint-*"):
            shutil.rmtree(old)


def _write_model(
    phase: Phase, folder: Path, policies: RunPolicies, model: Any, state: Mapping[str, Tensor] | None, steps: int
) -> None:
    """Weights, configuration and tokenizer; what an interrupted writing left is written over. The model card is no
    part of it: it is written when the iterate has been evaluated. The manifest tells the optimizer's steps, for the
    training's own, which is written behind it."""
    phase.begin()
    if phase.ranks.is_first:
        policies.save(folder, model, state)
    phase.commit((p.name for p in folder.iterdir() if p.is_file() and p.name != CARD), steps=steps)
