"""The official OpenAI client, with strict validation of every answer."""

import asyncio

import openai
import pytest

SAY = [{"role": "user", "content": "Name three colours."}]
SAMPLING = {"temperature": 0.8, "seed": 7}


@pytest.fixture(scope="module")
def client(base_url):
    with openai.OpenAI(
        base_url=base_url, api_key="none", max_retries=0, timeout=60, _strict_response_validation=True
    ) as client:
        yield client


@pytest.fixture()
def make_async(base_url):
    def make():
        return openai.AsyncOpenAI(
            base_url=base_url, api_key="none", max_retries=0, timeout=60, _strict_response_validation=True
        )

    return make


def test_models(client, model):
    models = list(client.models.list())
    assert [entry.id for entry in models] == [model]
    assert client.models.retrieve(model).object == "model"
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("none")
    assert error.value.code == "model_not_found"


def test_chat(client, model):
    answer = client.chat.completions.create(model=model, messages=SAY, max_tokens=12, **SAMPLING)
    assert answer.usage.completion_tokens <= 12
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in ("stop", "length")
    again = client.chat.completions.create(model=model, messages=SAY, max_tokens=12, **SAMPLING)
    assert again.choices[0].message.content == answer.choices[0].message.content
    assert again.system_fingerprint == answer.system_fingerprint


def test_chat_stream_says_the_same(client, model):
    whole = client.chat.completions.create(model=model, messages=SAY, max_completion_tokens=12, **SAMPLING)
    chunks = list(
        client.chat.completions.create(
            model=model,
            messages=SAY,
            max_completion_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
            **SAMPLING,
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


def test_chat_stream_helper(client, model):
    # The helper makes an error of an answer that the limit ends: this one ends with its first sentence.
    with client.chat.completions.stream(
        model=model, messages=SAY, max_tokens=200, stop=[".", "\n"], **SAMPLING
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content


def test_chat_choices_and_logprobs(client, model):
    answer = client.chat.completions.create(
        model=model, messages=SAY, max_tokens=4, n=2, logprobs=True, top_logprobs=3, **SAMPLING
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        for token in choice.logprobs.content:
            assert len(token.top_logprobs) == 3
            assert token.logprob <= 0


def test_chat_async(make_async, model):
    async def ask():
        async with make_async() as client:
            wanted = [
                client.chat.completions.create(model=model, messages=SAY, max_tokens=6, temperature=0)
                for _ in range(3)
            ]
            answers = await asyncio.gather(*wanted)
            parts = []
            async for chunk in await client.chat.completions.create(
                model=model, messages=SAY, max_tokens=6, temperature=0, stream=True
            ):
                parts.append(chunk.choices[0].delta.content or "")
            return answers, "".join(parts)

    answers, streamed = asyncio.run(ask())
    assert {answer.choices[0].message.content for answer in answers} == {streamed}


def test_chat_refusals(client, model):
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model=model, messages=SAY, temperature=9)
    assert error.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="none", messages=SAY)


def test_completions(client, model):
    answer = client.completions.create(model=model, prompt=["One, two,", "A, B,"], max_tokens=5, temperature=0)
    assert [choice.index for choice in answer.choices] == [0, 1]
    # OpenAI's own streams have no reason to finish until the end, which the client's types do not foresee.
    with openai.OpenAI(base_url=client.base_url, api_key="none", max_retries=0, timeout=60) as lenient:
        chunks = list(
            lenient.completions.create(model=model, prompt="One, two,", max_tokens=5, temperature=0, stream=True)
        )
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text


def test_response(client, model):
    response = client.responses.create(
        model=model,
        instructions="Be short.",
        input="Name three colours.",
        max_output_tokens=64,
        temperature=0,
        metadata={"purpose": "test"},
        store=False,
    )
    assert response.status in ("completed", "incomplete")
    assert response.output_text == response.output[0].content[0].text
    assert response.metadata == {"purpose": "test"}
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    # What was put out goes in again.
    items = [{"role": "user", "content": "Name three colours."}]
    items += [item.model_dump() for item in response.output]
    items += [{"role": "user", "content": [{"type": "input_text", "text": "And one more."}]}]
    following = client.responses.create(model=model, input=items, max_output_tokens=16, store=False)
    assert following.usage.input_tokens > response.usage.input_tokens


def test_response_stream(client, model):
    asked = dict(model=model, input="Name three colours.", max_output_tokens=12, temperature=0, store=False)
    whole = client.responses.create(**asked)
    events = list(client.responses.create(stream=True, **asked))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    last = events[-1].response
    assert (last.status, last.output_text, last.usage) == (whole.status, whole.output_text, whole.usage)
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text


def test_response_stream_helper(client, model):
    with client.responses.stream(model=model, input="Hello", max_output_tokens=128, store=False) as stream:
        for event in stream:
            assert event.sequence_number >= 0
        kinds = event.type
    assert kinds in ("response.completed", "response.incomplete")


def test_response_async(make_async, model):
    async def ask():
        async with make_async() as client:
            response = await client.responses.create(
                model=model, input="Hello", max_output_tokens=6, temperature=0, store=False
            )
            text = ""
            async for event in await client.responses.create(
                model=model, input="Hello", max_output_tokens=6, temperature=0, store=False, stream=True
            ):
                text += event.delta if event.type == "response.output_text.delta" else ""
            return response.output_text, text

    whole, streamed = asyncio.run(ask())
    assert whole == streamed


def test_response_logprobs(client, model):
    response = client.responses.create(
        model=model,
        input="Hello",
        max_output_tokens=3,
        include=["message.output_text.logprobs"],
        top_logprobs=2,
        store=False,
    )
    tokens = response.output[0].content[0].logprobs
    assert len(tokens) == 3 and all(len(token.top_logprobs) == 2 for token in tokens)
