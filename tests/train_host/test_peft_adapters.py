"""PEFT's own adapters, merged by us: the logits are PEFT's, or the adapter is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_run import SMALL, train, write_multimodal

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from converters.divergence import Divergence, log_softmax  # noqa: E402
from converters.merge import open_merged, write_hf  # noqa: E402
from converters.quantizer import How  # noqa: E402
from edge_agent.errors import ConversionError  # noqa: E402
from train_host.run_directory import read_run  # noqa: E402

IDS = torch.arange(20, 84)[None]
LINEAR = ["q_proj", "v_proj", "up_proj", "down_proj"]
LANGUAGE_MODEL = r".*language_model.*\.(q|v|up|down)_proj"
LAYER_1 = r"^model\.language_model\.layers\.1\.self_attn\.v_proj"


@pytest.fixture(scope="module")
def multimodal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_multimodal(tmp_path_factory.mktemp("multimodal") / "model")


def load(directory: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def logits(model: Any) -> np.ndarray:
    with torch.inference_mode():
        return model(input_ids=IDS).logits[0].numpy().copy()


def kl(a: np.ndarray, b: np.ndarray) -> float:
    found = Divergence()
    found.add(log_softmax(a), log_softmax(b))
    return found.mean


def adapted(base: Path, out: Path, settings: dict[str, Any]) -> np.ndarray:
    """Save an adapter whose B is random and return PEFT's logits with it."""
    torch.manual_seed(3)
    fields = {"task_type": "CAUSAL_LM", "r": 4, "target_modules": LINEAR, **settings}
    model = peft.get_peft_model(load(base), peft.LoraConfig(**fields)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    model.save_pretrained(out)
    return logits(model)


def merged_logits(base: Path, adapter: Path, out: Path) -> np.ndarray:
    write_hf(open_merged(base, adapter), out, "f32", How(threads=1))
    return logits(load(out))


@pytest.mark.parametrize(
    "settings",
    [
        *({"init_lora_weights": init} for init in (False, "gaussian", "orthogonal", "mica")),
        {"alpha_pattern": {"layers.1.self_attn.q_proj": 64}, "rank_pattern": {"up_proj": 2}},
        {"use_rslora": True, "layers_to_transform": [1]},
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj"], "target_parameters": ["mlp.up_proj.weight"]},
    ],
    ids=str,
)
def test_the_merged_model_has_pefts_logits(
    tmp_path: Path, tiny_llama: Path, settings: dict[str, Any]
) -> None:
    expected = adapted(tiny_llama, tmp_path / "peft", settings)
    assert kl(expected, logits(load(tiny_llama))) > 1e-3
    assert kl(expected, merged_logits(tiny_llama, tmp_path / "peft", tmp_path / "out")) < 1e-9


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "lora_ga"])
def test_an_init_that_changed_the_base_is_refused(
    tmp_path: Path, tiny_llama: Path, init: str
) -> None:
    adapted(tiny_llama, tmp_path / "peft", {"init_lora_weights": init})
    with pytest.raises(ConversionError, match=f"init_lora_weights is '{init}'"):
        open_merged(tiny_llama, tmp_path / "peft")


@pytest.mark.filterwarnings("ignore:.*changes the base weights of the model:UserWarning")
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_such_an_adapter_saved_as_a_plain_one_is_right(
    tmp_path: Path, tiny_llama: Path, init: str
) -> None:
    """What the refusal advises: PEFT writes the difference to the first adapter."""
    torch.manual_seed(3)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=init)
    config.target_modules = set(LINEAR)
    model = peft.get_peft_model(load(tiny_llama), config).eval()
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "first-adapter")
    model.peft_config["default"].init_lora_weights = init
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    initial = str(tmp_path / "first-adapter")
    model.save_pretrained(tmp_path / "peft", path_initial_model_for_weight_conversion=initial)
    found = merged_logits(tiny_llama, tmp_path / "peft", tmp_path / "out")
    assert kl(logits(model), found) < 1e-9


@pytest.mark.parametrize(
    "settings",
    [{}, {"alpha_pattern": {LAYER_1: 128}, "rank_pattern": {LAYER_1: 2}}],
    ids=["plain", "patterns"],
)
def test_a_multimodal_model_merges_to_its_text_model(
    tmp_path: Path, multimodal: Path, settings: dict[str, Any]
) -> None:
    wanted = {"target_modules": LANGUAGE_MODEL, **settings}
    expected = adapted(multimodal, tmp_path / "peft", wanted)
    found = merged_logits(multimodal, tmp_path / "peft", tmp_path / "out")
    assert kl(expected, found) < 1e-9 < kl(expected, logits(load(multimodal)))
    assert type(load(tmp_path / "out")).__name__ == "Gemma3ForCausalLM"


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_trains_the_language_model_of_a_multimodal_one(
    tmp_path: Path, multimodal: Path, pairs: Path, method: str
) -> None:
    flags = ("--model", multimodal, "--data", pairs, "-o", tmp_path / "run")
    done = train(*flags, "--cache", tmp_path / "cache", *SMALL, "--method", method, "--layers", "1")
    assert done.code == 0, done.err
    run = read_run(tmp_path / "run")
    if method == "full":
        changed, before = (load(path).state_dict() for path in (run.model, multimodal))
        parts = [key for key in changed if "layers.1." in key]
        named = {key: key.replace("model.", "model.language_model.", 1) for key in changed}
        assert parts and all(
            torch.equal(changed[key], before[named[key]]) != (key in parts) for key in changed
        )
        return
    adapter = open_merged(multimodal, run.adapter).adapter
    assert len(adapter) == 7 and all(name.startswith("blk.1.") for name in adapter)
