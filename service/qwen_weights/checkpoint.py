"""What makes files a model that the service can load: their names and a few small ones. Does not
know whether they lie in a folder, in an archive or at a hub.

There is one rule, so that the same bytes have the same revision wherever they come from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from qwen_weights import manifest as manifests
from qwen_weights import safetensors
from qwen_weights.errors import NotAModel

SUMS_NAME = "SHA256SUMS"
CONFIG = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
# What is read whole of a model to judge it, and of what came along with it.
READ = (CONFIG, safetensors.INDEX, TOKENIZER_CONFIG)
LISTS = (manifests.NAME, SUMS_NAME)
_MOST_NAMED = 5
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_OTHER_WEIGHTS = (*_PICKLES, ".gguf", ".onnx", ".onnx_data", ".h5", ".msgpack")
# `configuration.json` is ModelScope's own; documents differ between hubs of the same weights.
_NOT_ARTIFACTS = (*manifests.OWN_NAMES, SUMS_NAME, "configuration.json")
_DOCUMENTS = (
    *(".md", ".pdf", ".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg", ".bmp"),
    *(".mp3", ".mp4", ".wav"),
)
_PUBLISHERS_FORMAT = "original"
_TOKENIZERS = (("tokenizer.json",), ("qwen.tiktoken",), ("vocab.json", "merges.txt"))
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")


def is_wanted(path: str) -> bool:
    parts = path.split("/")
    if path in _NOT_ARTIFACTS or parts[0] == _PUBLISHERS_FORMAT:
        return False
    return not any(part.startswith(".") for part in parts) and not path.lower().endswith(_DOCUMENTS)


def select(paths: Iterable[str]) -> tuple[str, ...]:
    """The model's artifacts, sorted."""
    wanted = [path for path in paths if is_wanted(path)]
    if any(path.endswith(safetensors.ENDING) for path in wanted):
        wanted = [path for path in wanted if not path.endswith(_OTHER_WEIGHTS)]
    return tuple(sorted(wanted))


def is_weights(path: str) -> bool:
    return path.endswith(safetensors.ENDING)


@dataclass(frozen=True)
class Checkpoint:
    """`place` begins every message; `read` gives a whole file of those in READ."""

    place: str
    files: Sequence[str]
    read: Callable[[str], bytes]

    def check(self) -> None:
        """Raises NotAModel at the first thing wrong."""
        self._check_config()
        self._check_weights()
        if not any(set(names) <= set(self.files) for names in _TOKENIZERS):
            raise NotAModel(
                f"{self.place} has no tokenizer",
                hint="It needs tokenizer.json, or vocab.json and merges.txt, or qwen.tiktoken",
            )
        if not self._has_chat_template():
            raise NotAModel(
                f"{self.place} has no chat template: it is no chat model",
                hint="Use the -Instruct or -Chat model of the family",
            )

    def quantization(self) -> str | None:
        """How the weights are quantized, in transformers' words; None where they are not."""
        config = self._json(CONFIG)
        found = config.get("quantization_config") if isinstance(config, dict) else None
        if not isinstance(found, dict):
            return None
        if found.get("load_in_4bit") or found.get("load_in_8bit"):
            return "bitsandbytes"
        method = found.get("quant_method")
        is_name = isinstance(method, str) and manifests.QUANTIZATION.fullmatch(method)
        return str(method) if is_name else "unknown"

    def _has_chat_template(self) -> bool:
        # The first generation has its template in no file; the service knows it.
        if {"chat_template.jinja", "chat_template.json", "qwen.tiktoken"} & set(self.files):
            return True
        return TOKENIZER_CONFIG in self.files and b'"chat_template"' in self.read(TOKENIZER_CONFIG)

    def _check_config(self) -> None:
        if CONFIG not in self.files:
            raise NotAModel(f"{self.place} has no {CONFIG}, so it is not a model")
        config = self._json(CONFIG)
        if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
            raise NotAModel(f"{self.place}/{CONFIG} names no model_type")

    def _json(self, path: str) -> object:
        try:
            return json.loads(self.read(path))
        except (ValueError, RecursionError) as error:
            raise NotAModel(f"{self.place}/{path} is not JSON: {error}") from error

    def _check_weights(self) -> None:
        shards = [path for path in self.files if path.endswith(safetensors.ENDING)]
        pickles = [path for path in self.files if path.endswith(_PICKLES)]
        if not shards and pickles:
            raise NotAModel(
                f"{self.place} has only {some(pickles)}: only safetensors is loaded, because the "
                f"other formats can run code",
                hint="Get the model's safetensors files, or convert it",
            )
        if not shards:
            raise NotAModel(f"{self.place} has no weights: no file ends in {safetensors.ENDING}")
        if safetensors.INDEX not in self.files and any(_SHARD.search(path) for path in shards):
            raise NotAModel(
                f"{self.place} lacks {safetensors.INDEX}, without which no shard is found"
            )
        missing = sorted(self._shards_of_index() - set(shards))
        if missing:
            raise NotAModel(f"{self.place} lacks {some(missing)}, which {safetensors.INDEX} names")

    def _shards_of_index(self) -> set[str]:
        if safetensors.INDEX not in self.files:
            return set()
        index = self._json(safetensors.INDEX)
        shards = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(shards, dict) or not all(isinstance(one, str) for one in shards.values()):
            raise NotAModel(f"{self.place}/{safetensors.INDEX} has no weight_map")
        return set(shards.values())


def some(names: Sequence[str]) -> str:
    rest = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")
