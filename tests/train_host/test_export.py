"""`edge-train merge` and `export` on tiny runs: what is written, proven, pulled, and refused."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from cli_runner import Outcome, cli
from converted import edit
from tiny_run import SMALL, train

torch = pytest.importorskip("torch")

from converters.base_model import open_base  # noqa: E402
from converters.gguf_output import write_model  # noqa: E402
from converters.hf_to_gguf import load  # noqa: E402
from converters.imatrix_file import read_imatrix  # noqa: E402
from converters.quantizer import How  # noqa: E402
from edge_agent.cli.terminal import Terminal  # noqa: E402
from edge_agent.gguf.adapter_file import check_adapter  # noqa: E402
from edge_agent.gguf.model_file import read_gguf  # noqa: E402
from edge_agent.llama.type_plan import TypeRequest  # noqa: E402
from train_host import export_checks  # noqa: E402
from train_host.cli import main_with  # noqa: E402
from train_host.export import default_type  # noqa: E402
from train_host.model_card import Card, card  # noqa: E402
from train_host.model_source import with_base  # noqa: E402
from train_host.run_directory import read_run  # noqa: E402


def edge_train(*argv: str | Path) -> Outcome:
    out, err = io.StringIO(), io.StringIO()
    code = main_with([*map(str, argv)], Terminal(io.StringIO(), out, err, {}))
    return Outcome(code, out.getvalue(), err.getvalue())


def trained(run: Path, model: Path, pairs: Path, *more: str) -> Path:
    flags = ("--model", model, "--data", pairs, "-o", run, "--cache", run.parent / "cache")
    done = train(*flags, *SMALL, *more)
    assert done.code == 0, done.err
    return run


@pytest.fixture(scope="module")
def lora_run(tiny_llama: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("lora") / "lesson", tiny_llama, pairs)


@pytest.fixture(scope="module")
def exported(lora_run: Path) -> Path:
    flags = ("--type", "q4_k_m", "--imatrix-chunks", "2", "--data-license", "CC0-1.0")
    done = edge_train("export", lora_run, *flags, "--threads", "1")
    assert done.code == 0, done.err
    assert "lesson-q4_k_m.gguf" in done.out and "merge" in done.out
    return lora_run / "export"


def test_a_base_that_moved_is_named_and_must_be_the_same(
    tiny_llama: Path, pairs: Path, tmp_path: Path
) -> None:
    base, other = shutil.copytree(tiny_llama, tmp_path / "base"), tmp_path / "elsewhere"
    run = trained(tmp_path / "run", base, pairs)
    cache = ("--cache", tmp_path / "cache")
    base.rename(other)
    for command in ("export", "merge"):
        done = edge_train(command, run, *cache, "-o", tmp_path / "out")
        assert done.code == 1 and f"is not at {base}" in done.err and "--model" in done.err
    done = edge_train("merge", run, "--model", other, *cache, "-o", tmp_path / "merged")
    assert done.code == 0, done.err
    found = with_base(read_run(run), str(other), tmp_path / "cache")
    assert open_base(found.base_directory).hashes() == open_base(tiny_llama).hashes()
    shutil.copytree(other, run / "student")
    made_in_it = replace(read_run(run), base_directory=tmp_path / "old-name/student")
    assert with_base(made_in_it, None, tmp_path / "cache").base_directory == run / "student"
    edit(other / "config.json", rms_norm_eps=1e-3)
    for command in ("export", "merge"):
        done = edge_train(command, run, "--model", other, *cache, "-o", tmp_path / "out")
        assert done.code == 2 and f"{other} is not the base of {run}" in done.err
    other.rename(base)  # changed where it was
    done = edge_train("export", run, *cache, "-o", tmp_path / "out")
    assert done.code == 2 and "is not the base" in done.err and not (tmp_path / "out").exists()


def manifest(directory: Path) -> dict:
    return json.loads((directory / "export.json").read_text())


def test_an_export_holds_the_model_its_adapter_and_every_hash(exported: Path) -> None:
    document = manifest(exported)
    names = {"lesson-q4_k_m.gguf", "lesson-lora.gguf", "imatrix.gguf"}
    assert {path.name for path in exported.iterdir()} == names | {"README.md", "export.json"}
    assert {entry["file"] for entry in document["files"]} == names
    for entry in document["files"]:
        content = (exported / entry["file"]).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (
            entry["sha256"],
            entry["bytes"],
        )
    model = read_gguf(exported / "lesson-q4_k_m.gguf")
    assert model.quantization == document["model"]["type"] == "Q4_K_M"
    assert model.metadata["general.name"] == "lesson"
    assert model.metadata["edge_agent.trained.data_sha256"] == document["data"]["sha256"]
    assert read_imatrix(exported / "imatrix.gguf").chunk_count == 2


def test_each_step_was_compared_with_the_one_before(exported: Path) -> None:
    stages = {stage["stage"]: stage for stage in manifest(exported)["stages"]}
    assert list(stages) == ["merge", "convert", "quantize", "adapter", "lesson"]
    assert all(stage["passed"] for stage in stages.values())
    assert stages["merge"]["figures"]["kl_mean"] < 1e-8
    assert stages["convert"]["figures"]["kl_mean"] < 1e-8
    assert stages["convert"]["figures"]["bytes_equal"]
    assert stages["quantize"]["figures"]["served_kl_mean"] > 0
    assert stages["adapter"]["figures"]["weights"] == 14


def test_the_adapter_is_one_that_the_device_takes(exported: Path) -> None:
    info = check_adapter(
        exported / "lesson-lora.gguf", read_gguf(exported / "lesson-q4_k_m.gguf"), None
    )
    assert len(info.weights) == 14


def test_the_card_says_what_it_is_from_and_under_which_terms(exported: Path) -> None:
    text, document = (exported / "README.md").read_text(), manifest(exported)
    assert text.startswith('---\nlicense: "other"\n')  # the tiny model states none
    for said in ("# lesson", "CC0-1.0", "not stated", document["model"]["sha256"],
                 document["data"]["sha256"], "bits per byte", "learning_rate", "trl (version)",
                 "not measured"):  # fmt: skip
        assert said in text, said
    assert "None" not in text and "nan" not in text


def test_the_device_pulls_it(exported: Path, tmp_path: Path) -> None:
    done = cli("pull", str(exported), "--json", state_dir=tmp_path)
    assert done.code == 0, done.err
    model = done.document()["model"]
    assert (model["name"], model["sha256"]) == (
        "lesson-q4_k_m",
        manifest(exported)["model"]["sha256"],
    )


def test_an_export_is_never_written_over(exported: Path, lora_run: Path) -> None:
    before = (exported / "export.json").stat().st_mtime_ns
    done = edge_train("export", lora_run)
    assert done.code == 2 and "exists" in done.err
    assert (exported / "export.json").stat().st_mtime_ns == before


def test_a_failed_check_leaves_nothing(
    lora_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_checks, "GATE", -1.0)
    done = edge_train("export", lora_run, "-o", tmp_path / "x", "--imatrix-chunks", "0")
    assert done.code == 1 and "failed its check after merge" in done.err
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    flags = ("-o", tmp_path / "x", "--imatrix-chunks", "0", "--no-verify", "--name", "My Own")
    assert edge_train("export", lora_run, *flags, "--type", "q8_0").code == 0
    document = manifest(tmp_path / "x")
    assert document["model"]["file"] == "my-own-q8_0.gguf"
    assert {stage["passed"] for stage in document["stages"]} == {None}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--type", "q9"), "--type is 'q9'"),
        (("--token-embedding-type", "q9"), "no tensor type 'q9'"),
    ],
)
def test_what_cannot_be_is_a_usage_error(
    more: tuple[str, ...], said: str, lora_run: Path, tmp_path: Path
) -> None:
    done = edge_train("export", lora_run, "-o", tmp_path / "x", *more)
    assert (done.code, said in done.err) == (2, True), done.err
    assert edge_train("export", tmp_path, *more).code == 2


def test_merge_writes_the_sum_that_peft_makes(lora_run: Path, tmp_path: Path) -> None:
    done = edge_train("merge", lora_run, "-o", tmp_path / "merged", "--json")
    assert done.code == 0, done.err
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run = read_run(lora_run)
    base = AutoModelForCausalLM.from_pretrained(run.base_directory, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, str(run.adapter)).merge_and_unload().state_dict()
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=1e-6)
    assert edge_train("merge", lora_run, "-o", tmp_path / "merged").code == 1
    assert edge_train("merge", lora_run, "-o", tmp_path / "x", "--dtype", "f8").code == 2


def test_a_whole_model_needs_no_merge(tiny_llama: Path, pairs: Path, tmp_path: Path) -> None:
    run = trained(tmp_path / "run", tiny_llama, pairs, "--method", "full", "--lr", "1e-3")
    done = edge_train("export", run, "--type", "q8_0", "--imatrix-chunks", "1", "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    stages = {stage["stage"]: stage["passed"] for stage in document["stages"]}
    assert stages == {"merge": None, "convert": True, "quantize": True, "lesson": True}
    assert not list((run / "export").glob("*-lora.gguf"))
    refused = edge_train("merge", run, "-o", tmp_path / "x")
    assert refused.code == 2 and "no adapter to merge" in refused.err


def test_a_base_that_was_quantized_is_better_served_with_the_adapter(
    tiny_llama: Path, pairs: Path, exported: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base.gguf"
    write_model(base, *load(tiny_llama), TypeRequest("Q4_0"), How(threads=1))
    run = trained(tmp_path / "run", base, pairs, "--lr", "1e-3")
    assert default_type(read_run(run)) == "Q8_0"  # which keeps what q4_0 rounds away:
    flags = ("--imatrix-chunks", "0", "--type", "q4_0")
    done = edge_train("export", run, *flags)
    assert done.code == 0, done.err
    lesson = manifest(run / "export")["stages"][-1]["figures"]
    assert lesson["answer_loss_adapter"] == pytest.approx(lesson["answer_loss_trained"], abs=0.01)
    assert lesson["answer_loss_served"] > lesson["answer_loss_trained"] + 0.3
    assert lesson["kept_share"] < 0.5 and "of what was learned is lost in the file" in done.err
    assert "import the adapter beside its base" in done.err
    assert edge_train("export", run, "--imatrix-chunks", "0", "-o", tmp_path / "fine").code == 0
    lesson = manifest(tmp_path / "fine")["stages"][-1]["figures"]
    assert manifest(tmp_path / "fine")["model"]["type"] == "Q8_0" and lesson["kept_share"] > 0.95
    unchecked = edge_train("export", run, *flags, "--no-verify", "-o", tmp_path / "unchecked")
    assert "adapters import run-lora.gguf" in unchecked.err, unchecked.err
    assert not [note for note in manifest(exported)["notes"] if "rounds" in note]


def test_a_qat_run_is_exported_as_what_it_was_trained_for(
    tiny_llama: Path, pairs: Path, tmp_path: Path
) -> None:
    flags = ("--method", "qat", "--qat-type", "q4_0", "--lr", "1e-3")
    run = trained(tmp_path / "run", tiny_llama, pairs, *flags)
    other = edge_train("export", run, "--type", "q8_0")
    assert other.code == 2 and "was trained for q4_0" in other.err
    done = edge_train("export", run)
    assert done.code == 0, done.err
    document = manifest(run / "export")
    assert document["model"]["type"] == "Q4_0"
    assert "no importance matrix" in document["notes"][0]
    stages = {stage["stage"]: stage["figures"] for stage in document["stages"][1:]}
    assert stages["quantize"]["bytes_equal"]
    assert stages["lesson"]["kept_share"] > 0.95  # not 1: the server quantizes activations too


@pytest.mark.parametrize(
    "licence", ["a: b", "x\n---\n# Mine", "[mit", "no", "1.0", "mit|gpl", 'a"b']
)
def test_the_cards_front_matter_is_yaml_whatever_the_licence(licence: str) -> None:
    base = {"origin": "m", "sha256": "0", "licence": licence, "licence_link": f"l:{licence}"}
    model = {"type": "Q8_0", "bits_per_weight": 8.5, "file": "m.gguf"}
    export = {"name": "n", "method": "lora", "model": model, "base": base, "files": [],
              "data": base, "versions": {}, "stages": [], "notes": []}  # fmt: skip
    text = card(Card(export, {}, {}))
    head = yaml.safe_load(text.partition("---\n")[2].partition("\n---\n")[0])
    assert (head["license"], head["license_link"]) == (licence, f"l:{licence}")
