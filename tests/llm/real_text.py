"""What the tests on real text share: AlpacaEval's judged pairs, a byte-BPE tokenizer, a small model, a finished run.

The AlpacaEval data (CC BY-NC) are not part of the product; tests that need them are skipped where they are absent.
"""

import contextlib
import gzip
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nashpo.core.cli import main

DATA = Path(__file__).parents[3] / "shared" / "data" / "alpacaeval" / "judged_responses.jsonl.gz"
LETTERS = 100
"""Of each prompt and response that are used, to keep the tests short."""
BOS, EOS = 0, 1


@dataclass(frozen=True)
class Run:
    """A finished run, what it printed, and its reward model's accuracy on pairs that it has not seen."""

    path: Path
    command: list[str]
    printed: str
    accuracy: float

    def rows(self, pattern: str) -> list[dict[str, Any]]:
        """The lines of some of the run's files."""
        return [row for path in sorted(self.path.glob(pattern)) for row in lines(path)]

    def results(self, number: int) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.path / f"iterations/{number:03d}/evaluation/results.json").read_text())
        return found


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def judged_pairs() -> list[dict[str, Any]]:
    """The response that AlpacaEval's judge liked best against the one that it liked least, in a drawn order."""
    found = []
    with gzip.open(DATA, "rt") as file:
        for line in file:
            item = json.loads(line)
            judged = sorted(item["responses"].values(), key=lambda response: response["p_beats_baseline"])
            chosen, rejected = (response["text"][:LETTERS] for response in (judged[-1], judged[0]))
            if chosen and rejected:
                found.append({"prompt": item["prompt"][:LETTERS] + "\n\n", "chosen": chosen, "rejected": rejected})
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))]


def byte_bpe(texts: Iterator[str]) -> Any:
    """A tokenizer of 600 tokens that puts <s> before a text."""
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(texts, vocab_size=600, special_tokens=["<s>", "</s>", "<pad>"], show_progress=False)
    trained._tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def save_model(tokenizer: Any, folder: Path, positions: int = 256) -> None:
    """A small Llama with drawn weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=positions, **shape, **ids)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def check_stored_log_probabilities(run: Run, K: int) -> None:
    """Those of the starting policy on its own tokens are what a forward of its model gives, prompts one to three."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(run.path / "start", dtype=torch.float32)
    stored = load_file(run.path / "iterations/001/logprobs/start.safetensors")["logprobs"]
    rows = run.rows("iterations/001/samples/*.jsonl")
    assert stored.shape == (len(rows), K)
    for b, row in enumerate(rows[:3]):
        for k, one in enumerate(row["completions"]):
            ids = torch.tensor([[*row["prompt_ids"], *one["ids"]]])
            with torch.no_grad():
                tokens = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
            own = torch.tensor(one.get("mask", [1] * len(one["ids"])))
            # fp32 forward: at most some hundred roundings of 6e-8 of logits below 20, for each of 64 to 80 tokens.
            found = (own * tokens[len(row["prompt_ids"]) - 1 :]).sum()
            torch.testing.assert_close(found, stored[b, k], rtol=0, atol=5e-3)


def played(home: Path, command: list[str], accuracy: float = float("nan")) -> Run:
    """The run of a command that ends well, in ``home``; its reward model's accuracy where it was measured."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(command) == 0
    return Run(home / "run", command, out.getvalue(), accuracy)


def check_the_same_command_does_nothing(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """A finished run of two iterations is left alone: no file changes."""
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file() and path.name != "lock"}
    assert main(run.command) == 0
    assert "is finished (2 iterations)" in capsys.readouterr().out
    after = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file() and path.name != "lock"}
    assert after == before


def win_matrix(row: dict[str, Any], K: int) -> np.ndarray:
    """Who won among the K responses to a prompt, (K, K), checked to be symmetric."""
    P = np.array(row["wins"], dtype=float)
    assert P.shape == (K, K)
    np.testing.assert_allclose(P + P.T, np.ones((K, K)), rtol=0, atol=2**-50)  # one rounding each
    assert (np.diag(P) == 0.5).all()
    return P
