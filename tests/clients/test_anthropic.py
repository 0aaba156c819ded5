"""The official Anthropic client, with strict validation of every answer."""

import asyncio

import anthropic
import pytest

SAY = [{"role": "user", "content": "Name three colours."}]
# The client of this version has no parameter of its own for it.
GREEDY = {"extra_body": {"temperature": 0}}


@pytest.fixture(scope="module")
def client(root_url):
    with anthropic.Anthropic(
        base_url=root_url, api_key="none", max_retries=0, timeout=60, _strict_response_validation=True
    ) as client:
        yield client


def test_message(client, model):
    message = client.messages.create(
        model=model, max_tokens=12, system="Be short.", messages=SAY, extra_body={"temperature": 0, "seed": 7}
    )
    assert message.content[0].type == "text"
    assert message.stop_reason in ("end_turn", "max_tokens")
    assert message.usage.output_tokens <= 12
    count = client.messages.count_tokens(model=model, system="Be short.", messages=SAY)
    assert count.input_tokens == message.usage.input_tokens


def test_stream(client, model):
    whole = client.messages.create(model=model, max_tokens=12, messages=SAY, **GREEDY)
    with client.messages.stream(model=model, max_tokens=12, messages=SAY, **GREEDY) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    events = list(client.messages.create(model=model, max_tokens=4, messages=SAY, stream=True))
    assert events[0].type == "message_start" and events[-1].type == "message_stop"


def test_stop_sequence(client, model):
    whole = client.messages.create(model=model, max_tokens=12, messages=SAY, **GREEDY).content[0].text
    stop = whole[3:6]
    message = client.messages.create(
        model=model, max_tokens=12, messages=SAY, stop_sequences=[stop], **GREEDY
    )
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
    assert message.content[0].text == whole[: whole.index(stop)]


def test_async(root_url, model):
    async def ask():
        async with anthropic.AsyncAnthropic(base_url=root_url, api_key="none", timeout=60) as client:
            message = await client.messages.create(model=model, max_tokens=5, messages=SAY, **GREEDY)
            async with client.messages.stream(model=model, max_tokens=5, messages=SAY, **GREEDY) as stream:
                return message, await stream.get_final_message()

    whole, streamed = asyncio.run(ask())
    assert whole.content[0].text == streamed.content[0].text


def test_refusals(client, model):
    with pytest.raises(anthropic.BadRequestError) as error:
        client.messages.create(model=model, max_tokens=5, messages=SAY, extra_body={"temperature": 9})
    assert error.value.body["error"]["type"] == "invalid_request_error"
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="none", max_tokens=5, messages=SAY)
