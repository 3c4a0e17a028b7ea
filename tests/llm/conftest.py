"""Tiny models and tokenizers for the tests of `nashpo.llm`: nothing is downloaded."""

import gc
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # helpers of this folder are imported by name
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Callable, Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def quick_runs() -> Iterator[None]:
    """Runs on one thread, without pictures, and without a look through all that was imported whenever a trainer tidies
    up: a tiny run's time is then a quarter."""
    import torch

    from nashpo.llm.loop import machine

    torch.set_num_threads(1)
    gc.freeze()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(machine, "write_report", lambda run: (run / machine.REPORT).touch())
        yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def byte_tokenizer() -> Callable[..., Any]:
    """A maker of byte tokenizers with 256 bytes behind <s>, </s>, <pad>; ``begin`` puts <s> before every text."""

    def make(begin: bool = True, pad: bool = True, template: str | None = None, extra: tuple[str, ...] = ()) -> Any:
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
        from transformers import PreTrainedTokenizerFast

        special = ["<s>", "</s>", "<pad>"]
        symbols = special + sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (*special, *extra)])
        if begin:
            tokenizer.post_processor = processors.TemplateProcessing(
                single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
            )
        pads = {"pad_token": "<pad>"} if pad else {}
        made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", **pads)
        if template is not None:
            made.chat_template = template
        return made

    return make


@pytest.fixture(scope="session")
def tiny_llama() -> Callable[..., Any]:
    """A maker of seeded Llamas of hidden size 32 with dropout in their configuration."""

    def make(seed: int = 0, **options: Any) -> Any:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(seed)
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = {"vocab_size": 259, "num_key_value_heads": 2, "max_position_embeddings": 512, **shape}
        config |= {"attention_dropout": 0.1, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
        return LlamaForCausalLM(LlamaConfig(**{**config, **options}))

    return make


@pytest.fixture(scope="session")
def small_pairs() -> list[dict[str, Any]]:
    """13 pairs of uneven lengths: no batch size divides them."""
    return [
        {"prompt": f"question {i}: ", "chosen": "good" * (1 + i % 5), "rejected": "bad!" * (1 + i % 3)}
        for i in range(13)
    ]


@pytest.fixture
def trainer(
    tmp_path: Path,
    tiny_llama: Callable[..., Any],
    byte_tokenizer: Callable[..., Any],
    small_pairs: list[dict[str, Any]],
) -> Callable[..., Any]:
    """A maker of trainers on the 13 pairs; keywords go to the configuration or, where it has none, to the trainer."""

    from nashpo.llm.config import SelfPlayConfig
    from nashpo.llm.trainer import SelfPlayTrainer

    def make(rule: Any, **options: Any) -> Any:
        names = ("model", "ref_model", "objective", "policies", "peft_config", "compute_metrics", "callbacks")
        own = {name: options.pop(name) for name in (*names, "job", "known") if name in options}
        data = {name: options.pop(name) for name in ("train_dataset", "eval_dataset") if name in options}
        tokenizer = options.pop("processing_class", None) or byte_tokenizer()
        settings = {
            "output_dir": str(tmp_path / "out"),
            "use_cpu": True,
            "per_device_train_batch_size": 8,
            "logging_steps": 1,
            "learning_rate": 1e-3,
            "optim": "sgd",
            "save_strategy": "no",
            "disable_tqdm": True,
            "num_train_epochs": 2,
            **options,
        }
        return SelfPlayTrainer(
            own.pop("model", None) or tiny_llama(),
            args=SelfPlayConfig(**settings),
            processing_class=tokenizer,
            rule=rule,
            **{"train_dataset": small_pairs, **data},
            **own,
        )

    return make
