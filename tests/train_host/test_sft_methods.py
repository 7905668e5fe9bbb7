"""The four methods and the settings that change how a step is computed, on tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from converted import edit
from safetensors_writer import write_arrays
from tiny_checkpoint import arrays_of
from tiny_run import SMALL, log_of, losses_of, train, write_tiny

torch = pytest.importorskip("torch")

from converters.gguf_output import write_model  # noqa: E402
from converters.gguf_to_hf import open_model  # noqa: E402
from converters.hf_to_gguf import load  # noqa: E402
from converters.quantizer import How  # noqa: E402
from edge_agent.llama.type_plan import TypeRequest  # noqa: E402
from train_host.methods import load_model, widen_adapter  # noqa: E402
from train_host.settings import Facts, Wishes, resolve, total_steps, with_rows  # noqa: E402


def run_of(directory: Path, pairs: Path, scratch: Path, *more: str) -> Path:
    run = scratch / "-".join(("run", *more)).replace("/", "_")
    base = ("--model", directory, "--data", pairs, "-o", run, "--cache", scratch)
    done = train(*base, *SMALL, *more)
    assert done.code == 0, done.err
    return run


# ---- what stands beside the weights --------------------------------------------------------------


STALE = ({"quant_method": "bitsandbytes", "load_in_4bit": True}, {"quant_method": "gptq"}, {})


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_stale_quantization_and_odd_sampling_settings_change_nothing(
    tiny_llama: Path, tmp_path: Path, method: str
) -> None:
    settings = resolve(Wishes(method=method, threads=1), Facts(n_layer=2, n_params=1))
    expected = load_model(tiny_llama, settings).state_dict()
    directory = write_tiny(tmp_path / "model", "llama")
    odd = {"eos_token_id": [1.0], "temperature": "0.7", "top_k": -1, "max_length": "x"}
    for stale, sampling in zip(STALE, (odd, [], {"do_sample": False, "top_p": 0.9}), strict=True):
        edit(directory / "config.json", quantization_config=stale)
        (directory / "generation_config.json").write_text(json.dumps(sampling))
        found = load_model(directory, settings).state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_checkpoint_whose_names_transformers_does_not_read_is_not_trained(
    pairs: Path, tmp_path: Path
) -> None:
    directory = write_tiny(tmp_path / "model", "llama")
    arrays = {f"_orig_mod.{name}": array for name, array in arrays_of(directory).items()}
    write_arrays(directory / "model.safetensors", arrays)
    flags = ("--model", directory, "--data", pairs, "-o", tmp_path / "run", "--cache", tmp_path)
    done = train(*flags, *SMALL)
    assert done.code == 1
    assert "no weights for 21 tensors" in done.err and "_orig_mod.lm_head.weight" in done.err


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--r", "33", "self_attn.k_proj.weight has the shape [32, 64]"),
        ("--r", "99999999999999999999", "'--r'"),
        ("--seed", "99999999999999999999", "'--seed'"),
        ("--seed", "4294967296", "'--seed'"),
        ("--lora-alpha", "inf", "'--lora-alpha'"),
        ("--lr", "1e400", "'--lr'"),
        ("--epochs", "nan", "'--epochs'"),
        ("--max-steps", "99999999999999999999", "'--max-steps'"),
        ("--max-length", "99999999999999999999", "'--max-length'"),
    ],
)
def test_a_number_that_cannot_be_used_is_refused_before_anything_is_done(
    tiny_llama: Path, pairs: Path, tmp_path: Path, flag: str, value: str, said: str
) -> None:
    run = tmp_path / "run"
    flags = ("--model", tiny_llama, "--data", pairs, "-o", run, "--cache", tmp_path / "cache")
    done = train(*flags, *SMALL, flag, value)
    assert (done.code, said in done.err, (run / "run.json").exists()) == (2, True, False), done.err


# ---- qlora -------------------------------------------------------------------------------------


def test_qlora_trains_beside_a_base_in_nf4(tiny_llama: Path, pairs: Path, tmp_path: Path) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    settings = resolve(Wishes(method="qlora", threads=1), Facts(n_layer=2, n_params=1))
    model = load_model(tiny_llama, settings)
    base = model.model.layers[0].mlp.up_proj
    assert isinstance(base, bitsandbytes.nn.Linear4bit)
    assert base.weight.quant_state.quant_type == "nf4" and base.weight.quant_state.nested
    run = run_of(tiny_llama, pairs, tmp_path, "--method", "qlora")
    losses = losses_of(run)
    assert losses[-1] < 0.7 * losses[0]


def test_the_adapter_of_a_quantized_base_learns_in_float32(tmp_path: Path) -> None:
    half = torch.nn.Linear(4, 4, dtype=torch.bfloat16)
    half.bias.requires_grad_(False)
    widen_adapter(half)
    assert half.weight.dtype == torch.float32 and half.bias.dtype == torch.bfloat16


def test_qlora_resumes_to_the_same_curve(tiny_llama: Path, pairs: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    check_resume(tiny_llama, pairs, tmp_path, "qlora")


def check_resume(directory: Path, pairs: Path, scratch: Path, method: str) -> None:
    """Half a run, resumed, against a whole one."""
    run = run_of(directory, pairs, scratch, "--method", method, "--save-every", "3")
    whole = losses_of(run)
    (run / "metrics.json").unlink()
    (run / "checkpoints" / "checkpoint-6" / "complete.json").unlink()
    base = ("--model", directory, "--data", pairs, "-o", run, "--cache", scratch, *SMALL)
    done = train(*base, "--method", method, "--save-every", "3", "--resume")
    assert done.code == 0 and "going on from step 3" in done.err, done.err
    assert losses_of(run) == whole


# ---- full and qat ------------------------------------------------------------------------------


def test_full_changes_every_weight_and_leaves_a_whole_directory(
    tiny_llama: Path, pairs: Path, tmp_path: Path
) -> None:
    run = run_of(tiny_llama, pairs, tmp_path, "--method", "full")
    before, after = arrays_of(tiny_llama), arrays_of(run / "model")
    assert before.keys() == after.keys()
    assert all(not np.array_equal(before[name], after[name]) for name in before)
    assert (run / "model" / "tokenizer.json").read_bytes() == (
        tiny_llama / "tokenizer.json"
    ).read_bytes()
    assert not (run / "adapter").exists()
    losses = losses_of(run)
    assert losses[-1] < 0.7 * losses[0]


def test_full_of_the_top_block_leaves_the_rest(
    tiny_llama: Path, pairs: Path, tmp_path: Path
) -> None:
    run = run_of(tiny_llama, pairs, tmp_path, "--method", "full", "--layers", "top:1")
    before, after = arrays_of(tiny_llama), arrays_of(run / "model")
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith("model.layers.1.")}


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_qat_ends_in_what_the_file_will_hold(family: str, pairs: Path, tmp_path: Path) -> None:
    """The loss of the quantized file's weights is the one that training saw last."""
    directory = write_tiny(tmp_path / family, family)
    more = ("--method", "qat", "--qat-type", "q4_0", "--lr", "3e-3")
    run = run_of(directory, pairs, tmp_path, *more)
    losses = losses_of(run)
    assert losses[-1] < 0.9 * losses[0]
    path = tmp_path / "q4_0.gguf"
    write_model(path, *load(run / "model"), TypeRequest("Q4_0"), How(threads=1))
    types = {tensor.type for tensor in open_model(path).gguf.tensors}
    assert "Q4_0" in types
    document = json.loads((run / "run.json").read_text())
    assert document["settings"]["qat_type"] == "q4_0"


@pytest.mark.parametrize("method", ["full", "qat"])
def test_whole_models_resume_to_the_same_curve(
    method: str, tiny_llama: Path, pairs: Path, tmp_path: Path
) -> None:
    check_resume(tiny_llama, pairs, tmp_path, method)


# ---- how a step is computed --------------------------------------------------------------------


def test_recomputed_activations_change_nothing(
    tiny_llama: Path, pairs: Path, tmp_path: Path
) -> None:
    plain = run_of(tiny_llama, pairs, tmp_path, "--no-gradient-checkpointing")
    recomputed = run_of(tiny_llama, pairs, tmp_path, "--gradient-checkpointing")
    assert losses_of(recomputed) == pytest.approx(losses_of(plain), rel=1e-5)


def test_small_batches_make_the_same_steps(tiny_llama: Path, pairs: Path, tmp_path: Path) -> None:
    """Token-mean over the rows of a step, however they are divided."""
    one = run_of(tiny_llama, pairs, tmp_path, "--dtype", "fp32", "--micro-batch-size", "1")
    four = run_of(tiny_llama, pairs, tmp_path, "--dtype", "fp32", "--micro-batch-size", "4")
    assert losses_of(one) == pytest.approx(losses_of(four), rel=1e-4)
    assert validations(one) == pytest.approx(validations(four), rel=1e-4)


def validations(run: Path) -> list[float]:
    key = "validation_bits_per_byte"
    return [row[key] for row in log_of(run) if key in row]


def test_bf16_and_packing_run(tiny_llama: Path, pairs: Path, tmp_path: Path) -> None:
    for more in (("--dtype", "bf16"), ("--packing", "--max-length", "128")):
        losses = losses_of(run_of(tiny_llama, pairs, tmp_path, *more))
        assert losses[-1] < losses[0]


# ---- settings ----------------------------------------------------------------------------------


def resolved(facts: dict[str, Any] | None = None, **wishes: Any) -> Any:
    return resolve(Wishes(**wishes), Facts(**{"n_layer": 4, "n_params": 1, **(facts or {})}))


def test_defaults_follow_model_machine_and_method() -> None:
    small = resolved()
    assert (small.dtype, small.gradient_checkpointing, small.learning_rate) == ("fp32", False, 2e-4)
    large = resolved({"n_params": 7 * 10**9, "device": "cuda", "has_bf16": True}, method="full")
    assert (large.dtype, large.gradient_checkpointing, large.learning_rate) == ("bf16", True, 2e-5)
    assert large.qat_type is None and resolved(method="qat").qat_type == "q4_k_m"
    assert resolved(packing=True).micro_batch_size == 1


def test_a_step_has_the_same_rows_on_any_number_of_processes() -> None:
    for n in (1, 2, 8, 16):
        settings = resolved({"n_processes": n})
        assert settings.micro_batch_size * settings.accumulation_steps * n == 16


def test_a_tenth_of_the_run_lies_between_saves() -> None:
    settings = with_rows(resolved(epochs=3), 320)
    assert total_steps(settings, 320) == 60 and settings.save_every == 6
    assert with_rows(resolved(max_steps=5), 320).save_every == 1
    assert with_rows(resolved(save_every=7), 320).save_every == 7
    assert total_steps(resolved(epochs=0.5), 33) == 2
