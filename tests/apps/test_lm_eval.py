"""lm-evaluation-harness, as it is installed, scores a bundle as a checkpoint's own logits do (by transformers)."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer
from transformers import HrmTextConfig, HrmTextForCausalLM, LlamaForCausalLM

from edgeloop.export.pipeline import export_bundle
from edgeloop.runtime.errors import UsageError

pytestmark = pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed: make lm-eval")

QUESTIONS = [
    {"question": "the cat sat on the", "choices": [" mat", " moon and slept", " a"], "answer": 0},
    {"question": "one two", "choices": [" three", " four"], "answer": 0},
    {"question": "", "choices": ["yes", "no", "x"], "answer": 1},
    {"question": "single", "choices": ["a", "b", "c", "d"], "answer": 3},
]
TEXTS = [
    {"text": "a short text"},
    {"text": "a text of more tokens than the context of the model holds. " * 3},
]
PROMPTS = [
    {"prompt": "once upon"},
    {"prompt": "a prompt that is cut at its beginning, for it has too many tokens. "},
]
MOST = 12
COMMON = {"dataset_path": "json", "test_split": "train", "num_fewshot": 0}
TASKS: dict[str, dict[str, Any]] = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "doc_to_choice": "{{choices}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    },
    "texts": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
    "answers": {
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "nothing",
        "generation_kwargs": {"until": ["\x00"], "max_gen_toks": MOST, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}
RECORDS = {"choices": QUESTIONS, "texts": TEXTS, "answers": PROMPTS}


def write_tasks(folder: Path) -> Path:
    for name, task in TASKS.items():
        (folder / f"{name}.json").write_text("\n".join(map(json.dumps, RECORDS[name])))
        whole = {
            "task": name,
            **COMMON,
            **task,
            "dataset_kwargs": {"data_files": str(folder / f"{name}.json")},
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(whole))
    return folder


def lm_eval(*words: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    command = [sys.executable, "-m", "edgeloop.apps.lm_eval", *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


class Own:
    """The checkpoint in transformers, and what follows from its logits."""

    def __init__(self, folder: Path) -> None:
        self.model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.words = Tokenizer.from_file(str(folder / "tokenizer.json"))
        config = json.loads((folder / "config.json").read_text())
        self.prefix, self.end = config["bos_token_id"], config["eos_token_id"]
        self.context = config["max_position_embeddings"]

    def encode(self, text: str) -> list[int]:
        return list(self.words.encode(text).ids)

    @torch.no_grad()
    def logits(self, ids: list[int]) -> torch.Tensor:
        return self.model(torch.tensor([ids]), use_cache=False).logits[0]

    def score(self, before: list[int], behind: list[int]) -> tuple[float, bool]:
        rows = self.logits((before + behind)[:-1])[-len(behind) :]
        chosen = rows.log_softmax(-1)[range(len(behind)), behind]
        return float(chosen.sum()), rows.argmax(-1).tolist() == behind

    def rolling(self, text: str) -> float:
        ids, total = [self.prefix, *self.encode(text)], 0.0
        for start in range(0, len(ids) - 1, self.context):
            end = min(start + self.context, len(ids) - 1)  # the last window reads a whole context, too
            before = ids[max(end - self.context, 0) : start + 1]
            total += self.score(before, ids[start + 1 : end + 1])[0]
        return total

    def answer(self, text: str) -> str:
        ids, answer = self.encode(text)[-(self.context - MOST) :], []
        while len(answer) < MOST and self.end not in answer:
            answer.append(int(self.logits(ids + answer)[-1].argmax()))
        return self.words.decode(answer)


@pytest.fixture(scope="module")
def checkpoint(tiny_once: Callable[[str], Path]) -> Path:
    return tiny_once("mor-middle-cycle")  # unrolled on disk: transformers reads it as a Llama


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lm_eval") / "bundle"
    export_bundle(checkpoint, out, quant="none")
    return out


@pytest.fixture(scope="module")
def samples(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Of each task, the harness's own records of what the model said to each document."""
    folder, out = write_tasks(tmp_path_factory.mktemp("tasks")), tmp_path_factory.mktemp("results")
    words = ["--model", "edgeloop", "--model_args", f"bundle={bundle},engine=onnx", "--include_path", folder]
    done = lm_eval(*words, "--tasks", ",".join(TASKS), "--output_path", out, "--log_samples")
    assert done.returncode == 0, done.stderr[-2000:]
    found = {}
    for name in TASKS:
        file = next(out.rglob(f"samples_{name}_*.jsonl"))
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        found[name] = sorted(lines, key=lambda line: line["doc_id"])
    config = json.loads(next(out.rglob("results_*.json")).read_text())["config"]
    assert (config["engine"], config["depths"], config["exit"]) == ("onnx", 3, "never")
    return found


def test_choices_are_as_likely_as_in_the_checkpoint(
    checkpoint: Path, samples: dict[str, list[dict[str, Any]]]
) -> None:
    own = Own(checkpoint)
    for question, sample in zip(QUESTIONS, samples["choices"], strict=True):
        before = own.encode(question["question"]) or [own.prefix]
        wanted = [own.score(before, own.encode(choice)) for choice in question["choices"]]
        found = [tuple(response) for response in sample["filtered_resps"]]
        assert [float(total) for total, _ in found] == pytest.approx([t for t, _ in wanted], abs=1e-4)
        assert [greedy in (True, "True") for _, greedy in found] == [greedy for _, greedy in wanted]
        best = max(range(len(wanted)), key=lambda i: wanted[i][0])
        assert sample["acc"] == float(best == question["answer"])


def test_texts_longer_than_the_context_are_scored_in_windows(
    checkpoint: Path, samples: dict[str, list[dict[str, Any]]]
) -> None:
    own = Own(checkpoint)
    assert len(own.encode(TEXTS[1]["text"])) > own.context
    for text, sample in zip(TEXTS, samples["texts"], strict=True):
        bits = -own.rolling(text["text"]) / math.log(2)
        total, size = sample["bits_per_byte"]
        assert -float(total) / math.log(2) == pytest.approx(bits, abs=1e-3)
        assert size == len(text["text"].encode())


def test_answers_are_those_of_the_checkpoint(
    checkpoint: Path, samples: dict[str, list[dict[str, Any]]]
) -> None:
    own = Own(checkpoint)
    assert len(own.encode(PROMPTS[1]["prompt"])) > own.context - MOST
    for prompt, sample in zip(PROMPTS, samples["answers"], strict=True):
        assert sample["filtered_resps"] == [own.answer(prompt["prompt"])]


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"batch_size": 8}, "batch_size is 8"),
        ({"exit": "confidence"}, "exit"),
    ],
)
def test_what_cannot_be_had_is_refused(bundle: Path, more: dict[str, Any], line: str) -> None:
    from edgeloop.apps.lm_eval import EdgeloopLM

    with pytest.raises(UsageError, match=line):
        EdgeloopLM(str(bundle), **more)


def test_depth_and_exit_rule_are_the_sessions(bundle: Path) -> None:
    from edgeloop.apps.lm_eval import EdgeloopLM

    whole, first = EdgeloopLM(str(bundle)), EdgeloopLM(str(bundle), exit="depth:1", skipped_kv="skip")
    rows = [(None, [5, 6, 7], [8, 9])]
    assert whole._loglikelihood_tokens(rows, True) != first._loglikelihood_tokens(rows, True)
    logits = first.session.logits([5, 6, 7, 8])
    peak = logits.max(-1, keepdims=True)
    wanted = (logits - peak - torch.from_numpy(logits - peak).exp().sum(-1, keepdim=True).log().numpy())[
        [2, 3], [8, 9]
    ].sum()
    assert first._loglikelihood_tokens(rows, True)[0][0] == pytest.approx(float(wanted), abs=1e-5)


class OwnPrefix(Own):
    """A prefix LM with the tokenizer of ``folder``; a context of a few tokens, so that some prompts are cut."""

    def __init__(self, folder: Path, out: Path) -> None:
        self.words = Tokenizer.from_file(str(folder / "tokenizer.json"))
        told = json.loads((folder / "config.json").read_text())
        self.prefix, self.end, self.context = told["bos_token_id"], told["eos_token_id"], 32
        torch.manual_seed(0)
        self.model = HrmTextForCausalLM(
            HrmTextConfig(
                vocab_size=told["vocab_size"], hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                num_attention_heads=4, head_dim=8, max_position_embeddings=self.context, initializer_range=0.2,
                H_cycles=1, L_cycles=2, bos_token_id=self.prefix, eos_token_id=self.end,
            )
        ).eval()  # fmt: skip
        self.model.save_pretrained(out)
        shutil.copy(folder / "tokenizer.json", out)

    @torch.no_grad()
    def logits(self, ids: list[int], prompt: int = 0) -> torch.Tensor:
        types = (torch.arange(len(ids))[None] < prompt).long()
        return self.model(torch.tensor([ids]), token_type_ids=types, use_cache=False).logits[0]

    def prompted(self, before: list[int], behind: list[int]) -> tuple[float, bool]:
        """As ``score``, where the tokens of ``before`` see each other."""
        ids = [*before, *behind][:-1][-self.context :]
        rows = self.logits(ids, len(ids) - len(behind) + 1)[-len(behind) :]
        chosen = rows.log_softmax(-1)[range(len(behind)), behind]
        return float(chosen.sum()), rows.argmax(-1).tolist() == behind


def test_the_context_of_a_choice_is_a_prompt_of_a_prefix_lm(checkpoint: Path, tmp_path: Path) -> None:
    """Its tokens see each other, those of the choice are causal, and so is a text whose every token is predicted."""
    from lm_eval.api.instance import Instance

    from edgeloop.apps.lm_eval import EdgeloopLM

    own = OwnPrefix(checkpoint, tmp_path / "model")
    export_bundle(tmp_path / "model", tmp_path / "bundle", quant="none")
    asked = [(each["question"], choice) for each in QUESTIONS for choice in each["choices"]]
    asked += [("a question of more tokens than the context of the model holds. " * 2 + "so", " no")]
    model = EdgeloopLM(str(tmp_path / "bundle"))
    found = model.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in asked], True)
    before = [own.encode(question) or [own.prefix] for question, _ in asked]
    assert len(before[-1]) > own.context
    behind = [own.encode(choice) for _, choice in asked]
    wanted = [own.prompted(*each) for each in zip(before, behind, strict=True)]
    assert [total for total, _ in found] == pytest.approx([total for total, _ in wanted], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]
    causal = [own.score(*each)[0] for each in zip(before[:-1], behind, strict=False)]
    assert max(abs(total - other) for (total, _), other in zip(found, causal, strict=False)) > 0.01
    # The same tokens, cut elsewhere into prompt and choice.
    ids = own.encode(QUESTIONS[0]["question"])
    cuts = [(ids[:2], ids[2:]), (ids[:4], ids[4:])]
    found = model._loglikelihood_tokens([(None, *cut) for cut in cuts], True)
    assert [each[0] for each in found] == pytest.approx([own.prompted(*cut)[0] for cut in cuts], abs=1e-4)
    texts = [each["text"] for each in TEXTS]
    whole = model.loglikelihood_rolling(
        [Instance("loglikelihood_rolling", {}, (text,), 0) for text in texts], True
    )
    assert whole == pytest.approx([own.rolling(text) for text in texts], abs=1e-3)


@pytest.mark.parametrize(
    ("given", "code", "line"),
    [
        ("bundle=none", 1, "none does not exist"),
        (
            "bundle=none,depht=2",
            2,
            "--model_args has depht; wanted of bundle, engine, threads, context, depth,",
        ),
        ("", 2, "--model_args has no bundle=DIR"),
    ],
)
def test_a_model_that_is_none_is_one_line(given: str, code: int, line: str) -> None:
    done = lm_eval("--model", "edgeloop", "--model_args", given, "--tasks", "arc_easy")
    assert done.returncode == code
    assert line in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
