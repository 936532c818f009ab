"""The official client of today over an engine whose words are chosen: tools, streams, responses."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import openai
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamEvent
from pydantic import BaseModel

from tests.fake_engine import EMBEDDING, FACTS, FakeEngine
from tests.fake_service import FakeService
from tests.service_app import MODEL, user
from tests.tool_calls import BEIJING, CALL, FUNCTION, TOOLS

pytestmark = pytest.mark.contract

FLAT_TOOLS: Any = [{"type": "function", "strict": True, **FUNCTION}]
SAYS = {
    "weather": f"I look.\n{CALL}\n{CALL}",
    "think": "<think>\nHm.\n</think>\n\nHello",
    "person": '{"name": "Ann", "age": 5}',
}


class Person(BaseModel):
    """What the engine would be kept to; the fake one says it by itself."""

    name: str
    age: int


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    facts = replace(FACTS, thinks=True)
    with FakeService(FakeEngine(facts=facts, says=SAYS)) as service:
        yield f"{service.url}/v1"


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
        yield client


def test_tool_calls_are_parsed(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=user("weather"), tools=TOOLS)
    choice = answer.choices[0]
    assert (choice.message.content, choice.finish_reason) == ("I look.", "tool_calls")
    calls = choice.message.tool_calls
    assert calls is not None
    assert [call.function.arguments for call in calls] == [BEIJING] * 2  # type: ignore[union-attr]
    assert len({call.id for call in calls}) == 2


def test_the_stream_helper_puts_calls_together(client: openai.OpenAI) -> None:
    events: list[ChatCompletionStreamEvent[Any]] = []
    with client.chat.completions.stream(
        model=MODEL, messages=user("weather"), tools=TOOLS, stream_options={"include_usage": True}
    ) as stream:
        events += stream
        final = stream.get_final_completion()
    arguments = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert [(event.name, event.arguments) for event in arguments] == [("get_weather", BEIJING)] * 2
    assert final.choices[0].message.content == "I look."
    assert final.usage is not None
    assert final.usage.completion_tokens > 1


def test_parse_reads_an_answer_into_a_model(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model=MODEL, messages=user("person"), response_format=Person
    )
    assert answer.choices[0].message.parsed == Person(name="Ann", age=5)
    tools = [openai.pydantic_function_tool(Person, name="get_weather")]
    called = client.chat.completions.parse(model=MODEL, messages=user("person"), tools=tools)
    assert called.choices[0].message.tool_calls is None


def test_thoughts_are_a_field_of_their_own(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=user("think"))
    message: Any = answer.choices[0].message
    assert (message.content, message.reasoning_content) == ("Hello", "Hm.")


def test_the_async_client_streams_calls(url: str) -> None:
    async def fragments() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            stream = await client.chat.completions.create(
                model=MODEL, messages=user("weather"), stream=True, tools=TOOLS
            )
            deltas = [chunk.choices[0].delta async for chunk in stream]
            return [call for delta in deltas for call in delta.tool_calls or ()]

    calls = asyncio.run(fragments())
    for index in (0, 1):
        mine = [call.function.arguments for call in calls if call.index == index]
        assert "".join(mine) == BEIJING


def test_completions_and_logprobs_are_read(client: openai.OpenAI) -> None:
    text = client.completions.create(model=MODEL, prompt=["a b", "c"], n=2, logprobs=1)
    assert [choice.text for choice in text.choices] == ["a b", "a b", "c", "c"]
    assert text.choices[0].logprobs is not None
    assert text.choices[0].logprobs.tokens == ["a", " b"]
    chat = client.chat.completions.create(
        model=MODEL, messages=user("a b"), logprobs=True, top_logprobs=2
    )
    assert chat.choices[0].logprobs is not None
    assert chat.choices[0].logprobs.content is not None
    assert len(chat.choices[0].logprobs.content[1].top_logprobs) == 2
    pieces = client.completions.create(model=MODEL, prompt="a b", stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == "a b"


def test_responses_are_created_streamed_and_parsed(client: openai.OpenAI) -> None:
    answer = client.responses.create(model=MODEL, input="think", store=False)
    assert (answer.output_text, answer.status) == ("Hello", "completed")
    assert [item.type for item in answer.output] == ["reasoning", "message"]
    with client.responses.stream(model=MODEL, input="weather", tools=FLAT_TOOLS) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    calls = [item for item in final.output if item.type == "function_call"]
    assert [call.arguments for call in calls] == [BEIJING] * 2
    assert final.output_text == "I look."
    deltas = client.responses.create(model=MODEL, input="one two", stream=True)
    texts = [event.delta for event in deltas if event.type == "response.output_text.delta"]
    assert "".join(texts) == "one two"


def test_a_response_is_read_into_a_model(client: openai.OpenAI) -> None:
    answer = client.responses.parse(model=MODEL, input="person", text_format=Person)
    assert answer.output_parsed == Person(name="Ann", age=5)


def test_a_conversation_of_responses_goes_back_as_it_came(client: openai.OpenAI) -> None:
    first = client.responses.create(model=MODEL, input="weather", tools=FLAT_TOOLS)
    items: list[Any] = [{"role": "user", "content": "weather"}, *first.output]
    items += [
        {"type": "function_call_output", "call_id": item.call_id, "output": "sunny"}
        for item in first.output
        if item.type == "function_call"
    ]
    second = client.responses.create(model=MODEL, input=items, tools=FLAT_TOOLS)
    # The fake engine says the last message back.
    assert second.output_text == "sunny"


def test_messages_of_answers_go_back_as_they_came(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=user("weather"), tools=TOOLS)
    message: Any = answer.choices[0].message
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in message.tool_calls
    ]
    messages: Any = [*user("weather"), message, *results]
    again = client.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS)
    assert again.choices[0].message.content == "sunny"


def test_what_needs_a_memory_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model=MODEL, input="x", previous_response_id="resp_1")
    assert refused.value.param == "previous_response_id"


def test_embeddings_come_in_the_clients_own_format() -> None:
    with (
        FakeService(FakeEngine(facts=EMBEDDING)) as service,
        openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0) as client,
    ):
        packed = client.embeddings.create(model=MODEL, input=["a", "bbb"])
        plain = client.embeddings.create(model=MODEL, input=["a", "bbb"], encoding_format="float")
        for mine, theirs in zip(packed.data, plain.data, strict=True):
            assert mine.embedding == pytest.approx(theirs.embedding)
        with pytest.raises(openai.NotFoundError) as refused:
            client.chat.completions.create(model=MODEL, messages=user("Hi"))
        assert refused.value.code == "not_a_chat_model"
