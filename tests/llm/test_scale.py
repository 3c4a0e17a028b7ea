"""The model on paper: numbers worked by hand, FLOPs and saved bytes against torch's own counts, and what must grow."""

import gzip
import json
import math
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, MistralConfig

from nashpo.llm import scale_page
from nashpo.llm.flops import (
    SHAPES,
    Batch,
    Shape,
    attended,
    forward_flops,
    packed,
    padded,
    recomputed_flops,
    shape_of,
    shared,
    training_flops,
)
from nashpo.llm.hardware import GIB, HARDWARE, Cluster, Efficiency, hardware, needed, recognized
from nashpo.llm.lengths import Lengths, capped, spread
from nashpo.llm.scale import PAIRRM, Fit, cost, exchange, gpu_hours, judging, pair_lm, scoring, training
from nashpo.llm.scale_memory import sampling_memory, training_memory
from nashpo.llm.scale_runs import ALPACA_EVAL, ONPO, SPPO, phases
from nashpo.llm.scale_sampling import Sampler, decoding_steps, sampling, slots

MISTRAL = SHAPES["mistral-7b"]
TINY = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4}
FAMILIES: dict[str, Any] = {
    "llama": LlamaConfig(vocab_size=512, num_key_value_heads=2, **TINY),
    "mistral": MistralConfig(vocab_size=512, num_key_value_heads=2, sliding_window=16, **TINY),
    "gemma2": Gemma2Config(vocab_size=512, num_key_value_heads=2, head_dim=16, sliding_window=16, **TINY),
}
DATA = Path(__file__).parents[3] / "shared" / "data" / "alpacaeval" / "judged_responses.jsonl.gz"


def tiny(name: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(FAMILIES[name], attn_implementation="eager")


# -------------------------------------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("mistral-7b", 7_241_732_096), ("llama-3-8b", 8_030_261_248), ("gemma-2-9b", 9_241_705_984)],
)
def test_parameters_are_the_checkpoints(name: str, parameters: int) -> None:
    assert SHAPES[name].parameters == parameters


def test_seventy_billion() -> None:
    assert SHAPES["llama-3-70b"].parameters == 70_553_706_496


@pytest.mark.parametrize("name", FAMILIES)
def test_a_shape_is_read_from_a_configuration(name: str) -> None:
    found = shape_of(FAMILIES[name])
    assert found is not None
    assert found.parameters == sum(p.numel() for p in tiny(name).parameters())
    assert found.windowed == {"llama": 0, "mistral": 3, "gemma2": 2}[name]


def test_what_is_no_decoder_has_no_shape() -> None:
    assert shape_of(object()) is None


def test_attention_pairs_by_hand() -> None:
    assert attended(4) == 1 + 2 + 3 + 4
    assert attended(5, 2) == 1 + 2 + 2 + 2 + 2
    assert attended(3, 9) == 6
    shape = Shape(4, 8, 2, 2, 4, 16, 32, window=2, windowed=1)
    assert shape.pairs(5) == (3 * 15 + 9) / 4
    assert shape.pairs(5, 3) == (3 * (4 + 5) + (2 + 2)) / 4


# --------------------------------------------------------------------------------------------------------------- FLOPs


@pytest.mark.parametrize("name", FAMILIES)
def test_flops_are_those_that_torch_counts(name: str) -> None:
    model, shape = tiny(name), shape_of(FAMILIES[name])
    assert shape is not None
    ids = torch.randint(0, 512, (2, 48))
    # Eager attention multiplies whole squares, whatever the mask.
    batch = Batch(tokens=96, scored=96, pairs=2 * 48 * 48)
    with FlopCounterMode(display=False) as forward:
        model(ids)
    with FlopCounterMode(display=False) as step:
        model(ids).logits.square().sum().backward()
    assert forward.get_total_flops() == pytest.approx(forward_flops(shape, batch), rel=0.01)
    assert step.get_total_flops() == pytest.approx(training_flops(shape, batch), rel=0.01)


def test_lora_flops_are_those_that_torch_counts() -> None:
    from peft import LoraConfig, get_peft_model

    shape = shape_of(FAMILIES["llama"])
    assert shape is not None
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(tiny("llama"), LoraConfig(r=4, target_modules=linear))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == shape.lora(4)
    with FlopCounterMode(display=False) as step:
        model(torch.randint(0, 512, (2, 48))).logits.square().sum().backward()
    wanted = training_flops(shape, Batch(tokens=96, scored=96, pairs=2 * 48 * 48), rank=4)
    # The first layer's input needs no gradient, which saves under 3 % of these three layers.
    assert step.get_total_flops() == pytest.approx(wanted, rel=0.03)


def test_flops_by_hand() -> None:
    shape = Shape(1, 2, 1, 1, 2, 3, 5)
    assert shape.layer == 2 * 2 * 2 * 2 + 3 * 2 * 3  # q, k, v, o of 2 x 2, three of 2 x 3
    batch = Batch(tokens=7, scored=3, pairs=11)
    forward = 2 * 34 * 7 + 2 * 10 * 3 + 4 * 2 * 11
    assert forward_flops(shape, batch) == forward
    assert training_flops(shape, batch) == 3 * forward
    assert recomputed_flops(shape, batch) == 2 * 34 * 7 + 4 * 2 * 11
    adapters = 1 * (4 * (2 + 2) + 3 * (2 + 3))
    assert shape.lora(1) == adapters
    assert training_flops(shape, batch, 1) == 2 * (forward - 88) + 3 * 88 + 6 * adapters * 7


def test_layouts_by_hand() -> None:
    rows = [(3, (2, 4)), (1, (1, 1))]
    one = packed(MISTRAL, rows)
    assert (one.tokens, one.scored, one.pairs) == (5 + 7 + 2 + 2, 8, 15 + 28 + 3 + 3)
    once = shared(MISTRAL, rows)
    assert (once.tokens, once.scored) == (3 + 2 + 4 + 1 + 1 + 1, 8)
    assert once.pairs == 6 + (15 - 6) + (28 - 6) + 1 + (3 - 1) + (3 - 1)
    square = padded(MISTRAL, rows, 2)
    assert (square.tokens, square.scored, square.pairs) == (4 * 7, 8, 4 * 28)
    assert one.useful == once.useful == square.useful == 16
    assert padded(MISTRAL, rows, 1).tokens == 2 * 7 + 2 * 2


# ------------------------------------------------------------------------------------------------------------- lengths


def test_the_longest_of_several() -> None:
    lengths = Lengths((5,), (10, 20, 40))
    assert lengths.longest(1) == pytest.approx(lengths.response)
    # Of two: 1/9 are both 10, 5/9 have a 40 among them.
    assert lengths.longest(2) == pytest.approx((10 + 3 * 20 + 5 * 40) / 9)
    assert lengths.longest(1e6) == pytest.approx(40)


def test_rows_have_every_length_equally_often() -> None:
    rows = ALPACA_EVAL.rows(400, 5)
    assert sum(p for p, _ in rows) == 20 * sum(ALPACA_EVAL.prompts)
    assert sum(sum(r) for _, r in rows) == 100 * sum(ALPACA_EVAL.responses)


def test_a_spread_has_its_mean() -> None:
    found = spread(480, 0.6)
    assert sum(found) / len(found) == pytest.approx(480, abs=0.5)  # each is rounded to a token
    assert spread(100, 0.0, 4) == (100, 100, 100, 100)
    assert capped((1, 9), 4) == (1, 4)
    with pytest.raises(ValueError, match="lengths of responses must be at least 1"):
        Lengths((3,), ())


@pytest.mark.skipif(not DATA.exists(), reason="AlpacaEval's responses are not here")
def test_alpaca_evals_lengths_are_the_datas() -> None:
    with gzip.open(DATA, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    for values, kept in (
        ([len(row["prompt"]) for row in rows], ALPACA_EVAL.prompts),
        ([len(r["text"]) for row in rows for r in row["responses"].values()], ALPACA_EVAL.responses),
    ):
        ordered = sorted(values)
        assert tuple(round(ordered[int((i + 0.5) / 20 * len(ordered))] / 4) for i in range(20)) == kept


# -------------------------------------------------------------------------------------------------------------- phases

UNIT = replace(HARDWARE["a100-80"], peak=1e12, single=1e11, memory=40e9, bandwidth=1e12, link=1e9, network=1e8)
ALL = Efficiency(1, 1, 1, 1)


def test_sampling_by_hand() -> None:
    assert decoding_steps(Lengths((1,), (10,)), 100, 20, True) == 50
    assert decoding_steps(Lengths((1,), (10,)), 100, 20, False) == 50
    assert decoding_steps(Lengths((1,), (10, 30)), 2, 20, True) == pytest.approx(25)
    shape = Shape(1, 2, 1, 1, 2, 3, 5)
    sampler = Sampler(overhead=0, slots=2)
    slow = Cluster(replace(UNIT, bandwidth=1e10), 1, ALL)
    found = sampling(shape, Lengths((4,), (6,)), 3, 2, slow, sampler)
    forwards = (6 - 2) * 6 / 2 + 6
    seen = 6 * (4 * 6 + 36 / 2)  # tokens whose keys and values are read
    assert found.moved == forwards * 2 * shape.parameters + seen * 2 * 1 * 1 * 2 * 2
    assert found.tokens == 6 * 6 + 3 * 4
    prompts = 2 * 34 * 12 + 2 * 10 * 3 + 8 * 3 * 10
    assert found.flops == 2 * 34 * 36 + 2 * 10 * 36 + 8 * seen + prompts
    assert found.seconds == pytest.approx(found.moved / 1e10 + prompts / 1e12)
    assert found.bound == "memory"
    fast = sampling(shape, Lengths((4,), (6,)), 3, 2, Cluster(UNIT, 1, ALL), sampler)
    assert fast.seconds == pytest.approx(fast.flops / 1e12)
    assert fast.bound == "compute"


def test_slots_fill_what_the_weights_leave() -> None:
    lengths = Lengths((100,), (300,))
    free = 0.9 * 40e9 - 2 * MISTRAL.parameters
    assert slots(MISTRAL, lengths, Sampler(slots=10**6), UNIT) == int(free / (400 * MISTRAL.cached()))
    assert MISTRAL.cached() == 2 * 32 * 8 * 128 * 2
    with pytest.raises(ValueError, match="141 GB of weights do not fit 1 × a100-80"):
        slots(SHAPES["llama-3-70b"], lengths, Sampler(), HARDWARE["a100-80"])
    parts = sampling_memory(MISTRAL, lengths, Sampler(slots=10**6), UNIT)
    assert sum(parts.values()) <= 0.9 * 40e9
    assert sum(parts.values()) >= 0.9 * 40e9 - 400 * MISTRAL.cached()


def test_training_by_hand() -> None:
    shape = Shape(1, 2, 1, 1, 2, 3, 5)
    batch = Batch(tokens=64, scored=32, pairs=100)
    fit = Fit(micro=8, updates=4)
    alone = training(shape, batch, fit, Cluster(UNIT, 1, ALL))
    assert alone.sent == 0
    assert alone.flops == training_flops(shape, batch) + recomputed_flops(shape, batch)
    assert alone.seconds >= alone.flops / 1e12
    # 16 GPUs in 2 machines: 64/(16 * 8) micro-batches are fewer than the 4 updates.
    both = training(shape, batch, fit, Cluster(UNIT, 16, ALL))
    assert both.sent == 4 * 8 * shape.parameters * 15 / 16
    entering = 4 * 8 * shape.parameters / 2 / 8 / 1e8
    updated = 4 * 2 * 12 * shape.parameters / (16 * 1e12)
    assert both.seconds == pytest.approx(max(both.sent / 1e9, entering) + updated)
    assert both.bound == "links"


def test_judges_and_passes_by_hand() -> None:
    lengths = Lengths((100, 2000), (500,))
    tokens, flops = PAIRRM.question(lengths)
    assert tokens == (100 + 1224) / 2 + 2 * 412
    assert flops == 2 * 24 * 12 * 1024**2 * tokens + 24 * 8 * 1024 * tokens**2
    cluster = Cluster(UNIT, 2, ALL)
    found = judging(pair_lm(MISTRAL), Lengths((100,), (200,)), 7, cluster)
    assert found.flops == 7 * (2 * MISTRAL.body * 500 + MISTRAL.attention * attended(500))
    assert found.seconds == pytest.approx(found.flops / 2e12)
    single = judging(replace(PAIRRM, single=True), lengths, 7, cluster)
    assert single.seconds == pytest.approx(single.flops / 2e11)
    assert scoring(MISTRAL, Batch(10, 5, 55), cluster).flops == forward_flops(MISTRAL, Batch(10, 5, 55))
    assert exchange(MISTRAL).seconds == pytest.approx(2 * 2 * MISTRAL.parameters / 2e9)


def test_more_costs_more() -> None:
    found = phases(SPPO)
    hours = [p.seconds for p in found]
    for larger in (replace(SPPO, K=8), replace(SPPO, prompts=40_000), replace(SPPO, hardware=HARDWARE["a100-40"])):
        assert sum(p.seconds for p in phases(larger)) > sum(hours)
    for faster in (replace(SPPO, hardware=HARDWARE["h100"]), replace(SPPO, gpus=16)):
        assert sum(p.seconds for p in phases(faster)) < sum(hours)
    better = phases(SPPO, Efficiency(0.8, 0.8, 0.8, 0.8))
    assert all(p.seconds <= q for p, q in zip(better, hours, strict=True))
    assert cost(found, 8, 3.0) == pytest.approx(3 * gpu_hours(found, 8))
    assert gpu_hours(found, 8) == pytest.approx(8 * sum(hours) / 3600)
    assert [p.name for p in phases(ONPO)] == ["sampling", "judging", "log-probabilities", "training", "weights"]


def test_sampling_gains_by_what_it_is_given() -> None:
    def seconds(sampler: Sampler) -> float:
        return sampling(MISTRAL, SPPO.lengths, 2000, 5, Cluster(HARDWARE["h200"]), sampler).seconds

    whole = seconds(Sampler())
    assert whole < seconds(Sampler(prefix=False))
    assert whole < seconds(Sampler(call=64)) < seconds(Sampler(slots=64, continuous=False))
    assert seconds(Sampler(slots=512)) < whole


# -------------------------------------------------------------------------------------------------------------- memory


def saved_bytes(layers: int, autocast: bool, tokens: int) -> int:
    """Bytes of what autograd keeps, parameters and their copies left out."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=448,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    model = model.to(torch.float32 if autocast else torch.bfloat16)
    weights = {tuple(p.shape)[::order] for p in model.parameters() for order in (1, -1)}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and tuple(tensor.shape) not in weights:
            kept[storage.data_ptr()] = tensor
        return tensor

    lower = torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), lower:
        model.model(input_ids=torch.randint(0, 64, (1, tokens)), use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("autocast", [False, True])
def test_a_layer_keeps_what_autograd_keeps(autocast: bool) -> None:
    tokens = 100
    shape = Shape(1, 128, 4, 2, 32, 448, 64)
    per_layer = (saved_bytes(4, autocast, tokens) - saved_bytes(2, autocast, tokens)) / 2 / tokens
    assert per_layer == pytest.approx(shape.kept(autocast), rel=0.02)


def test_memory_by_hand() -> None:
    parts = training_memory(MISTRAL, Fit(micro=1000), 1)
    assert parts["weights"] == parts["gradients"] == parts["optimizer states"] == 4 * MISTRAL.parameters
    assert parts["weights in bf16"] == 2 * (MISTRAL.body + MISTRAL.head)
    inside = MISTRAL.kept(True) + 6 * 14336
    assert parts["activations"] == 1000 * (inside + 32 * 4 * 4096)
    eight = training_memory(MISTRAL, Fit(micro=1000), 8)
    assert eight["weights"] == eight["gradients"] == eight["optimizer states"] == MISTRAL.parameters / 2
    assert eight["weights in bf16"] == 2 * (2 * MISTRAL.layer + MISTRAL.head)
    assert eight["activations"] == parts["activations"]
    assert sum(training_memory(MISTRAL, Fit(micro=1000, checkpointing=False)).values()) > sum(parts.values())
    lora = training_memory(MISTRAL, Fit(weight=2, states=8, rank=16, autocast=False))
    assert lora["weights"] == 2 * MISTRAL.parameters + 4 * MISTRAL.lora(16)
    assert lora["optimizer states"] == 8 * MISTRAL.lora(16)


# ------------------------------------------------------------------------------------------------------------ hardware


def test_hardware_by_name() -> None:
    assert hardware("h200").memory == 139 * GIB
    with pytest.raises(ValueError, match="unknown hardware 'b100'; did you mean 'h100'"):
        hardware("b100")
    with pytest.raises(ValueError, match="gpus = 0 must be at least 1"):
        Cluster(hardware("h200"), 0)
    names = {
        ("NVIDIA H200", 150e9): "h200",
        ("NVIDIA H100 80GB HBM3", 85e9): "h100",
        ("NVIDIA A100-SXM4-80GB", 85e9): "a100-80",
        ("NVIDIA A100-SXM4-40GB", 42e9): "a100-40",
    }
    assert {seen: getattr(recognized(*seen), "name", None) for seen in names} == names
    assert recognized("Some Card", 24e9) is None


def test_the_fewest_gpus() -> None:
    assert needed({1: 100 * GIB, 2: 60 * GIB, 4: 30 * GIB}) == ["1 × h200", "2 × h100", "2 × a100-80", "4 × a100-40"]
    assert needed({1: 200 * GIB}) == []


def test_measurements_replace_assumptions() -> None:
    found = Efficiency().with_measured({"efficiency": {"training": 0.6}})
    assert (found.training, found.forward, found.measured) == (0.6, Efficiency().forward, ("training",))
    with pytest.raises(ValueError, match="no entry 'efficiency'"):
        Efficiency().with_measured({})
    with pytest.raises(ValueError, match="unknown efficiency 'train'"):
        Efficiency().with_measured({"efficiency": {"train": 0.5}})
    with pytest.raises(ValueError, match="efficiency decode = 2.0 must be a share"):
        Efficiency().with_measured({"efficiency": {"decode": 2}})


# ------------------------------------------------------------------------------------------------------------ the page


def test_the_page_has_the_scripts_tables() -> None:
    page = (Path(__file__).parents[2] / "llm/SCALE.md").read_text(encoding="utf-8")  # no part of a wheel
    for title, text in scale_page.tables().items():
        assert text in page, f"{title}: python -m nashpo.llm.scale prints another table than llm/SCALE.md has"


def test_the_script_prints_them(tmp_path: Path) -> None:
    measured = tmp_path / "bench.json"
    measured.write_text(json.dumps({"efficiency": {"training": 0.61}}))
    command = [sys.executable, "-m", "nashpo.llm.scale", "--price", "3"]
    done = subprocess.run([*command, "--measured", str(measured)], capture_output=True, text=True, check=True)
    assert "| of peak, forward and backward, recomputation counted as work | 0.61 | measured |" in done.stdout
    hours = gpu_hours(phases(SPPO, Efficiency(training=0.61)), 8)
    assert f"**{hours:,.0f} GPU-hours, {3 * hours:,.0f} at 3 each**" in done.stdout
    measured.write_text("{}")
    done = subprocess.run([*command, "--measured", str(measured)], capture_output=True, text=True)
    assert done.returncode == 2
    assert "no entry 'efficiency'" in done.stderr.splitlines()[-1]


def test_nothing_here_imports_torch() -> None:
    code = "import sys, nashpo.llm.scale_page; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_predictions_of_all_runs_are_finite() -> None:
    for run in scale_page.RUNS:
        assert all(math.isfinite(p.seconds) and p.seconds > 0 for p in phases(run))
