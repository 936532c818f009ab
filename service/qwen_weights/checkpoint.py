"""What makes files a model that the service can load: their names and a few small ones. Does not
know whether they lie in a folder or in an archive.

The controller selects by the same rule, so that the same bytes have the same revision wherever they
come from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import manifest as manifests
from .errors import NotAModel

SUMS_NAME = "SHA256SUMS"
CONFIG = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
INDEX = "model.safetensors.index.json"
# What is read whole, to judge a model or its bytes.
READ = (CONFIG, TOKENIZER_CONFIG, INDEX, SUMS_NAME, manifests.NAME)
_MOST_NAMED = 5
_WEIGHTS = ".safetensors"
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
_LENGTH_BYTES = 8
_LONGEST_HEADER_BYTES = 100_000_000  # the format's own limit


def is_wanted(path: str) -> bool:
    parts = path.split("/")
    if path in _NOT_ARTIFACTS or parts[0] == _PUBLISHERS_FORMAT:
        return False
    return not any(part.startswith(".") for part in parts) and not path.lower().endswith(_DOCUMENTS)


def select(paths: Iterable[str]) -> tuple[str, ...]:
    """The model's artifacts, sorted."""
    wanted = [path for path in paths if is_wanted(path)]
    if any(path.endswith(_WEIGHTS) for path in wanted):
        wanted = [path for path in wanted if not path.endswith(_OTHER_WEIGHTS)]
    return tuple(sorted(wanted))


def is_weights(path: str) -> bool:
    return path.endswith(_WEIGHTS)


def head_bytes(start: bytes) -> int | None:
    """How long the header of a safetensors file is that begins so; none where it has none.

    A length, a JSON header, the tensors' bytes: https://github.com/huggingface/safetensors#format
    """
    length = int.from_bytes(start[:_LENGTH_BYTES], "little")
    if len(start) < _LENGTH_BYTES or length > _LONGEST_HEADER_BYTES:
        return None
    return _LENGTH_BYTES + length


@dataclass(frozen=True)
class Checkpoint:
    """`place` begins every message; `head` gives the first bytes of a file, at most so many."""

    place: str
    sizes: Mapping[str, int]
    head: Callable[[str, int], bytes]

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(self.sizes)

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

    def read(self, path: str) -> bytes:
        return self.head(path, self.sizes[path])

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
        shards = [path for path in self.files if path.endswith(_WEIGHTS)]
        pickles = [path for path in self.files if path.endswith(_PICKLES)]
        if not shards and pickles:
            raise NotAModel(
                f"{self.place} has only {some(pickles)}: only safetensors is loaded, because the "
                f"other formats can run code",
                hint="Get the model's safetensors files, or convert it",
            )
        if not shards:
            raise NotAModel(f"{self.place} has no weights: no file ends in {_WEIGHTS}")
        if INDEX not in self.files and any(_SHARD.search(path) for path in shards):
            raise NotAModel(f"{self.place} lacks {INDEX}, without which no shard is found")
        missing = sorted(self._shards_of_index() - set(shards))
        if missing:
            raise NotAModel(f"{self.place} lacks {some(missing)}, which {INDEX} names")
        broken = [f"{path} {why}" for path in shards if (why := self._fault(path))]
        if broken:
            raise NotAModel(
                f"{self.place}: {some(broken)}", hint="Copy or download these files again"
            )

    def _shards_of_index(self) -> set[str]:
        if INDEX not in self.files:
            return set()
        index = self._json(INDEX)
        shards = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(shards, dict) or not all(isinstance(one, str) for one in shards.values()):
            raise NotAModel(f"{self.place}/{INDEX} has no weight_map")
        return set(shards.values())

    def _fault(self, path: str) -> str | None:
        """What is wrong with a file of safetensors, in words that follow its name."""
        size = self.sizes[path]
        length = head_bytes(self.head(path, _LENGTH_BYTES))
        if length is None:
            return "has no safetensors header"
        if length > size:
            return "is cut short in its header"
        end = _end_of_tensors(self.head(path, length)[_LENGTH_BYTES:])
        if end is None:
            return "has a corrupted header"
        if size == length + end:
            return None
        kind = "cut short" if size < length + end else "too long"
        return f"is {kind}: {size} of {length + end} bytes"


def some(names: Sequence[str]) -> str:
    rest = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _end_of_tensors(header: bytes) -> int | None:
    try:
        entries: Any = json.loads(header)
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name[:2] != "__"]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return None
    return max(ends, default=0) if all(isinstance(end, int) for end in ends) else None
