"""Quantization-aware training: what is trained is, bit for bit, what the exported file holds."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoint import write_checkpoint

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from converters import gguf_to_hf, hf_to_gguf  # noqa: E402
from converters.checkpoint import open_checkpoint  # noqa: E402
from converters.gguf_output import write_model  # noqa: E402
from converters.quantizer import How  # noqa: E402
from edge_agent.errors import ConversionError, UsageError  # noqa: E402
from edge_agent.gguf.model_file import read_gguf  # noqa: E402
from edge_agent.llama.type_plan import TypeRequest  # noqa: E402
from train_host import qat  # noqa: E402

FAMILIES = ("llama", "gemma3")
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model of each family, as `edge-convert to-hf` writes it; llama's head is untied."""
    scratch, found = tmp_path_factory.mktemp("qat"), {}
    for family in FAMILIES:
        write_checkpoint(scratch / family, family)
        export(scratch / family, scratch / f"{family}.gguf", "f32")
        gguf_to_hf.convert(scratch / f"{family}.gguf", scratch / f"{family}-hf")
        found[family] = scratch / f"{family}-hf"
    return found


def export(directory: Path, path: Path, type_name: str, imatrix: Any = None) -> None:
    request = TypeRequest(type_name.upper(), imatrix=imatrix or {})
    write_model(path, *hf_to_gguf.load(directory), request, How(threads=2))


def load(directory: Path, dtype: Any = torch.float32) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype, attn_implementation="eager", local_files_only=True
    )


def ids() -> Any:
    return torch.from_numpy(np.random.default_rng(4).integers(20, 200, (2, 12)))


def train(model: Any, steps: int = 3) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=ids(), labels=ids()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("type_name", ["q4_0", "q8_0", "q4_k_m", "q3_k_m", "f16"])
def test_the_exported_file_holds_what_was_trained_bit_for_bit(
    directories: dict[str, Path], tmp_path: Path, family: str, type_name: str
) -> None:
    source = directories[family]
    model = load(source)
    plan = qat.type_plan(source, type_name)
    names = qat.attach(model, plan)
    losses = train(model)
    assert losses[-1] < losses[0]
    qat.write_latent(model, source, tmp_path / "latent")
    export(tmp_path / "latent", tmp_path / "model.gguf", type_name)
    assert qat.differences(model, tmp_path / "model.gguf") == {}
    assert set(names) == set(qat.quantized_weights(model))
    exported = gguf_types(tmp_path / "model.gguf")
    assert sorted(exported) == sorted(plan.values())
    assert len(names) == sum(type_name != "F32" for type_name in exported)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_dequantized_file(
    directories: dict[str, Path], tmp_path: Path, family: str
) -> None:
    source = directories[family]
    model = load(source)
    qat.attach(model, qat.type_plan(source, "q4_k_m"))
    train(model)
    qat.write_latent(model, source, tmp_path / "latent")
    export(tmp_path / "latent", tmp_path / "model.gguf", "q4_k_m")
    gguf_to_hf.convert(tmp_path / "model.gguf", tmp_path / "served")
    with torch.inference_mode():
        served = load(tmp_path / "served").eval()(input_ids=ids()).logits
        assert torch.equal(model.eval()(input_ids=ids()).logits, served)


def test_an_importance_matrix_must_be_the_same_in_training_and_export(
    directories: dict[str, Path], tmp_path: Path
) -> None:
    source = directories["llama"]
    rng = np.random.default_rng(5)
    widths = {t.name: t.rows.n_columns for t in hf_to_gguf.load(source)[1] if len(t.shape) == 2}
    imatrix = {name: rng.random(n, np.float32) + np.float32(0.01) for name, n in widths.items()}
    model = load(source)
    plan = qat.type_plan(source, "q4_k_m", imatrix)
    places = qat._placements(open_checkpoint(source))
    importance = {places[name].source: v for name, v in imatrix.items() if name in places}
    qat.attach(model, plan, importance)
    train(model)
    qat.write_latent(model, source, tmp_path / "latent")
    export(tmp_path / "latent", tmp_path / "with.gguf", "q4_k_m", imatrix)
    export(tmp_path / "latent", tmp_path / "without.gguf", "q4_k_m")
    assert qat.differences(model, tmp_path / "with.gguf") == {}
    assert qat.differences(model, tmp_path / "without.gguf")


def test_the_plan_has_the_fallbacks_of_widths_that_do_not_divide(
    directories: dict[str, Path],
) -> None:
    plan = qat.type_plan(directories["llama"], "q4_k_m")
    assert plan["model.layers.0.self_attn.q_proj.weight"] == "Q5_0"  # 64 columns
    assert plan["model.layers.0.mlp.down_proj.weight"] in ("Q4_K", "Q6_K")  # 256
    assert plan["model.norm.weight"] == "F32"


def test_a_tied_head_sees_the_same_quantized_embedding(directories: dict[str, Path]) -> None:
    model = load(directories["gemma3"])
    latent = model.model.embed_tokens.weight
    names = qat.attach(model, qat.type_plan(directories["gemma3"], "q4_0"))
    assert EMBEDDING in names and "lm_head.weight" not in names
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    assert not torch.equal(model.lm_head.weight, latent)
    model(input_ids=ids(), labels=ids()).loss.backward()
    unused = torch.ones(len(latent), dtype=torch.bool)
    unused[ids().unique()] = False
    assert latent.grad[unused].any(), "the head's gradient is missing"


def test_names_stay_and_a_save_holds_the_latent_weights(
    directories: dict[str, Path], tmp_path: Path
) -> None:
    model, plain = load(directories["gemma3"]), load(directories["gemma3"])
    qat.attach(model, qat.type_plan(directories["gemma3"], "q4_0"))
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in plain.named_parameters()]
    model.tie_weights()
    model.save_pretrained(tmp_path / "saved")
    for name, value in load(tmp_path / "saved").state_dict().items():
        assert torch.equal(value, plain.state_dict()[name]), name
    assert type(model).__name__ == type(plain).__name__
    assert model.config.architectures == plain.config.architectures


def test_loaded_weights_are_seen_and_a_copy_stands_alone(directories: dict[str, Path]) -> None:
    """As resuming from a checkpoint does."""
    model, other = load(directories["llama"]), load(directories["llama"])
    qat.attach(model, qat.type_plan(directories["llama"], "q8_0"))
    before = qat.quantized_weights(model)[EMBEDDING].copy()
    double = copy.deepcopy(model)
    with torch.no_grad():
        other.model.embed_tokens.weight.mul_(2)
    model.load_state_dict(other.state_dict())
    np.testing.assert_array_equal(qat.quantized_weights(model)[EMBEDDING], 2 * before)
    np.testing.assert_array_equal(qat.quantized_weights(double)[EMBEDDING], before)


def test_checkpointed_blocks_have_the_same_gradients(directories: dict[str, Path]) -> None:
    gradients = []
    for is_checkpointed in (False, True):
        model = load(directories["llama"]).train()
        qat.attach(model, qat.type_plan(directories["llama"], "q4_0"))
        if is_checkpointed:
            model.activation_checkpointing_enable()
        model(input_ids=ids(), labels=ids(), use_cache=False).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_model_is_attached_once(directories: dict[str, Path]) -> None:
    model = load(directories["gemma3"])
    qat.attach(model, qat.type_plan(directories["gemma3"], "q4_0"))
    with pytest.raises(ConversionError, match="already"):
        qat.attach(model, {})


def test_latent_weights_in_half_precision_are_refused(directories: dict[str, Path]) -> None:
    model = load(directories["llama"], torch.bfloat16)
    with pytest.raises(ConversionError, match="bfloat16, in which small steps are lost"):
        qat.attach(model, qat.type_plan(directories["llama"], "q4_0"))


def test_a_type_that_needs_an_importance_matrix_is_refused_without_one(
    directories: dict[str, Path],
) -> None:
    model = load(directories["llama"])
    with pytest.raises(ConversionError, match="needs an importance matrix"):
        qat.attach(model, {"model.layers.0.mlp.down_proj.weight": "IQ2_XXS"})
    with pytest.raises(ConversionError, match="no such weight"):
        qat.attach(model, {"model.layers.9.mlp.down_proj.weight": "Q4_0"})
    with pytest.raises(UsageError, match="q5_1_x"):
        qat.type_plan(directories["llama"], "q5_1_x")


def gguf_types(path: Path) -> list[str]:
    return [tensor.type for tensor in read_gguf(path).tensors]
