"""Libraries that applications use in front of the OpenAI API."""

import asyncio


def test_langchain_chat(base_url, model):
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(base_url=base_url, api_key="none", model=model, max_tokens=8, temperature=0, max_retries=0)
    answer = chat.invoke("Name three colours.")
    assert answer.content and answer.usage_metadata["output_tokens"] <= 8
    assert "".join(chunk.content for chunk in chat.stream("Name three colours.")) == answer.content
    assert [one.content for one in chat.batch(["Name three colours."] * 2)] == [answer.content] * 2


def test_langchain_responses(base_url, model):
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(
        base_url=base_url,
        api_key="none",
        model=model,
        max_tokens=8,
        temperature=0,
        max_retries=0,
        use_responses_api=True,
        store=False,
    )
    answer = chat.invoke([("system", "Be short."), ("user", "Name three colours.")])
    assert answer.text and answer.usage_metadata["output_tokens"] <= 8
    streamed = None
    for chunk in chat.stream([("system", "Be short."), ("user", "Name three colours.")]):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed.text == answer.text


def test_litellm(base_url, root_url, model):
    import litellm

    say = [{"role": "user", "content": "Name three colours."}]
    openai = dict(model=f"openai/{model}", api_base=base_url, api_key="none", num_retries=0)
    answer = litellm.completion(messages=say, max_tokens=8, temperature=0, **openai)
    text = answer.choices[0].message.content
    chunks = litellm.completion(messages=say, max_tokens=8, temperature=0, stream=True, **openai)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    anthropic = dict(model=f"anthropic/{model}", api_base=root_url, api_key="none", num_retries=0)
    answer = litellm.completion(messages=say, max_tokens=8, temperature=0, **anthropic)
    assert answer.choices[0].message.content == text


def test_pydantic_ai(base_url, model):
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=base_url, api_key="none")
    for kind in (OpenAIChatModel, OpenAIResponsesModel):
        agent = Agent(kind(model, provider=provider), model_settings={"max_tokens": 64, "temperature": 0})
        assert agent.run_sync("Name three colours.").output

        async def streamed(agent=agent):
            async with agent.run_stream("Name three colours.") as result:
                return await result.get_output()

        assert asyncio.run(streamed())
