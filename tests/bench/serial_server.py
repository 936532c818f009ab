"""`python -m tests.bench.serial_server MODEL PORT`: a chat server as the original demo is one: the
answer is generated in the handler, one at a time, while everything else waits.

Its answer is whole and comes as one event, so that the clients of the others can read it.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import Response
from transformers import AutoModelForCausalLM, AutoTokenizer


def create_app(model_dir: str) -> FastAPI:
    app = FastAPI()
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype="auto").eval()

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        body = await request.json()
        inputs = tokenizer.apply_chat_template(
            body["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=body["max_tokens"], do_sample=False)
        new = output[0][inputs["input_ids"].shape[1] :]
        text = tokenizer.decode(new, skip_special_tokens=True)
        usage = {"completion_tokens": len(new), "prompt_tokens": inputs["input_ids"].shape[1]}
        events: tuple[dict[str, Any], ...] = (
            {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": "stop"}]},
            {"choices": [], "usage": usage},
        )
        return Response("".join(map(_event, events)), media_type="text/event-stream")

    return app


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


if __name__ == "__main__":
    uvicorn.run(create_app(sys.argv[1]), port=int(sys.argv[2]), log_level="warning")
