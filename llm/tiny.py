"""The tiny model itself: a small Llama with random weights and a tokenizer of words, saved like any other model."""

from __future__ import annotations

import os
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nashpo.llm.tiny_config import END, TinyModel

_INIT = 0.2
"""Standard deviation of the weights: large, so that every prefix has features of its own."""
_POSITIONS = 64


def tiny_tokenizer(tiny: TinyModel) -> Any:
    """Words by id and the end token behind them, which also pads; no begin token.

    A text is cut at spaces and between words, so that a prompt and a response may be put together with or without one.
    """
    words = tiny.words
    tokenizer = Tokenizer(models.WordLevel({**{word: i for i, word in enumerate(words)}, END: tiny.end_id}))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("|".join(words)), "isolated")]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END, padding_side="left")


def tiny_llama(tiny: TinyModel) -> LlamaForCausalLM:
    """A Llama in float32 whose vocabulary is exactly the tokenizer's."""
    config = LlamaConfig(
        vocab_size=tiny.symbols + 1,
        hidden_size=tiny.hidden_size,
        intermediate_size=2 * tiny.hidden_size,
        num_hidden_layers=tiny.layers,
        num_attention_heads=tiny.heads,
        num_key_value_heads=tiny.heads,
        max_position_embeddings=_POSITIONS,
        initializer_range=_INIT,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tiny.end_id,
        pad_token_id=tiny.end_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(tiny.seed)
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            model.lm_head.weight.normal_(0.0, tiny.spread / tiny.hidden_size**0.5)
    return model.eval()


def build_tiny(tiny: TinyModel, folder: str | os.PathLike[str]) -> None:
    """Save model and tokenizer in a folder that transformers loads (config.json, safetensors, tokenizer.json)."""
    tiny_llama(tiny).save_pretrained(folder)
    tiny_tokenizer(tiny).save_pretrained(folder)
