"""Two phases of a stage: log-probabilities of its base policies on the responses, then the fit itself.

Base log-probabilities are computed once, by the pass that the trainer would use, and stored: while a stage is trained
its own model is the only one in memory. Shapes: B prompts, K responses each; log-probabilities (B, K) float64 in nats.
"""

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PrinterCallback

from nashpo.llm.config import SelfPlayConfig
from nashpo.llm.known import stage_logprobs
from nashpo.llm.loop.checkpoints import CompleteCheckpoints, LogFile, last_complete
from nashpo.llm.loop.hub import OPTIONS
from nashpo.llm.loop.phase import Phase
from nashpo.llm.loop.policies import RunPolicies, label
from nashpo.llm.objectives import Objective
from nashpo.llm.preferences import PreferenceData
from nashpo.llm.recipe.training import arguments
from nashpo.llm.responses import Responses
from nashpo.llm.sampling import derived_seed
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
    """

    training: Mapping[str, Any]
    objective: Callable[[Job], Objective]
    tokenizer: Any
    seed: int
    quiet: bool

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
) -> dict[str, Tensor]:
    """log π of every response under each of the policies, computed or read back."""
    phase = Phase(folder, "logprobs", key)
    if not phase.committed:
        phase.begin(policies=list(names))
        progress("logprobs", 0, len(names))
        args = fitting.arguments(folder, key)
        for number, name in enumerate(names):
            path = folder / f"{label(name)}.safetensors"
            if not path.exists():
                with policies.use(name) as model:
                    found = _logprobs(model, responses, args, fitting.tokenizer)
                aside = path.with_suffix(".part")
                save_file({"logprobs": found.cpu().contiguous()}, str(aside))
                aside.replace(path)
            progress("logprobs", number + 1, len(names))
        phase.commit(policies=list(names), counts={"policies": len(names), "prompts": len(responses)})
    return {name: load_file(str(folder / f"{label(name)}.safetensors"))["logprobs"] for name in names}


def _logprobs(model: torch.nn.Module, responses: Responses, args: SelfPlayConfig, tokenizer: Any) -> Tensor:
    """By the pass of the trainer under these arguments."""
    layout = layout_of(args, tokenizer)
    lower = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    autocast = None if lower is None else torch.autocast(next(model.parameters()).device.type, lower)
    size = args.precompute_ref_batch_size or args.per_device_eval_batch_size
    return stage_logprobs(model, responses, layout, size, autocast)


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
    model_phase = Phase(result, "model", key)
    phase = Phase(folder, "train", key)
    if model_phase.committed and phase.committed:
        return
    if not model_phase.committed:
        phase.begin(stage=job.stage.writes)
        args = fitting.arguments(folder, key)
        checkpoint = last_complete(folder)
        torch.manual_seed(args.seed)  # a fresh adapter draws its weights
        with policies.train(job.start) as model:
            trainer = SelfPlayTrainer(
                model,
                args=args,
                train_dataset=data,
                processing_class=fitting.tokenizer,
                job=job,
                objective=fitting.objective(job),
                callbacks=[CompleteCheckpoints(), log_file := LogFile(folder / LOG)],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            log_file.write(trainer.state.log_history)
            steps = trainer.state.global_step
            del trainer
            _write_model(model_phase, result, policies, model)
        phase.begin(stage=job.stage.writes)
        phase.commit([LOG], stage=job.stage.writes, counts={"steps": steps, "prompts": len(data)})
    elif not phase.committed:  # stopped between the two commits
        phase.begin(stage=job.stage.writes)
        phase.commit([LOG], stage=job.stage.writes, counts={"prompts": len(data)})
    for old in folder.glob("checkpoint-*"):
        shutil.rmtree(old)


def _write_model(phase: Phase, folder: Path, policies: RunPolicies, model: Any) -> None:
    """Weights, configuration and tokenizer; what an interrupted writing left is written over. The model card is no
    part of it: it is written when the iterate has been evaluated."""
    phase.begin()
    policies.save(folder, model)
    phase.commit(p.name for p in folder.iterdir() if p.is_file() and p.name != CARD)
