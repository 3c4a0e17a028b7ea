"""Each packaged recipe of a 7–9B model, started under ``accelerate launch`` with a tiny model of its architecture.

    python tests/benchmarks/try_recipes.py [--only NAME ...] [--processes 2]

Nothing is downloaded: weights are random, prompts are made up, a function judges, and transformers samples on the CPU.
All other settings are the recipe's own. A table says which recipes ran to the end of their iterations.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("Mistral", {"sliding_window": None}),
    "llama": ("Llama", {}),
    "gemma": ("Gemma2", {"head_dim": 16, "sliding_window": 4096}),
}
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
JUDGE = """
def longer(prompts, firsts, seconds):
    return [0.5 + 0.4 * (len(a) > len(b)) - 0.4 * (len(a) < len(b)) for a, b in zip(firsts, seconds)]
"""


def tokenizer() -> Any:
    """Letters, and the special tokens and chat template that real models have."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", "<pad>", *sorted(letters)])}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = TEMPLATE
    return fast


def model(folder: Path, kind: str) -> Path:
    """A tiny model of an architecture, and its tokenizer."""
    import torch
    import transformers

    name, special = ARCHITECTURES[kind]
    words = tokenizer()
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        **{**SHAPE, **special, "vocab_size": len(words), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    )
    place = folder / kind
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(place)
    words.save_pretrained(place)
    return place


def changes(name: str, folder: Path, place: Path) -> list[str]:
    """What is changed of a recipe."""
    from nashpo.llm.recipe.schema import load_recipe

    recipe = load_recipe(name)
    K = 2 if recipe.sampling is None else recipe.sampling.K
    data = "pairs" if recipe.pairs is not None else "prompts"
    result = [
        f"model.path={place}",
        "model.tokenizer=null",
        f"{data}={{path: {folder / (data + '.jsonl')}, chat: true, heldout: 2}}",
        f"sampling={{engine: transformers, K: {K}, max_new_tokens: 8}}",
        f"output_dir={folder / name}",
        "judge={kind: function, function: 'longer_wins:longer'}",
    ]
    return result


def attempt(name: str, folder: Path, processes: int) -> tuple[int, float, str]:
    """Exit status, seconds and the last line."""
    kind = next(kind for kind in ARCHITECTURES if kind in name.replace("spac-mistral", "mistral"))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", _config(folder, processes)]
    command += ["-m", "nashpo.llm", "train", name, *changes(name, folder, folder / kind), "--quiet"]
    began = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    found = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    lines = [line for line in (found.stdout + found.stderr).splitlines() if line.strip()]
    return (
        found.returncode,
        time.monotonic() - began,
        next((line for line in reversed(lines) if line.startswith(("nashpo:", "report:"))), lines[-1] if lines else ""),
    )


def _config(folder: Path, processes: int) -> str:
    """The packaged configuration, for that many processes on the CPU."""
    from nashpo.llm.launch import accelerate_config

    text = accelerate_config("ddp").read_text()
    # The distributed type stays MULTI_GPU: with MULTI_CPU accelerate starts one process only, where there is no MPI.
    text = text.replace("use_cpu: false", "use_cpu: true").replace("gpu_ids: all\n", "")
    text = text.replace("num_processes: 8", f"num_processes: {processes}")
    path = folder / "ddp.yaml"
    path.write_text(text)
    return str(path)


def main() -> int:
    """The script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    from nashpo.llm.recipe.library import names

    chosen = options.only or [name for name in names() if name.endswith(("7b", "8b", "9b", "code"))]
    folder = Path(tempfile.mkdtemp(prefix="nashpo-recipes-"))
    for kind in ARCHITECTURES:
        model(folder, kind)
    rows = [{"prompt": f"question {i}", "chosen": f"yes {i}", "rejected": "no"} for i in range(14)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in rows))
    (folder / "longer_wins.py").write_text(JUDGE)
    failed = 0
    for name in chosen:
        status, seconds, line = attempt(name, folder, options.processes)
        failed += status != 0
        print(
            f"{name:26} {'ran' if status == 0 else f'failed ({status})':12} {seconds:6.1f} s  {line[:160]}", flush=True
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
