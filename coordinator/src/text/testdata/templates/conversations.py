"""Conversations that templates are rendered with: plain ones, ones with tools, ones that templates refuse.

Written to conversations.json by render.py; both are read in this order.
"""

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place, in \"plain\" words & <numbers>.",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "Ort, z. B. Zürich"},
                "days": {"type": "integer", "minimum": 1, "default": 1},
                "share": {"type": "number", "enum": [0.5, 1.0, 1e-05, 1e16, 100000000000000000000.0]},
            },
            "required": ["place"],
        },
        "return": {"type": "string"},
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "description": "", "parameters": {"type": "object", "properties": {}}}}


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


def call(name, arguments, number="abcdef123"):
    return {"id": number, "type": "function", "function": {"name": name, "arguments": arguments}}


PLAIN = [
    [turn("user", "Hi")],
    [turn("user", "")],
    [turn("system", "Be kind."), turn("user", "Who are you?")],
    [turn("user", "  spaces \n\n"), turn("assistant", "\n answer \n"), turn("user", "más\t🚚 <|im_end|> {{ x }} {% y %}")],
    [turn("system", "  S  "), turn("user", "a"), turn("assistant", "b"), turn("user", "c"), turn("assistant", "d")],
    [turn("user", "1 < 2 & \"3\" > '4' \\ \u2028 \u00e9")],
    [turn("assistant", "first"), turn("user", "second")],
    [turn("user", "a"), turn("user", "b")],
    [turn("user", "q"), turn("assistant", "<think>\nsome thoughts\n\n</think>\n\nthe answer"), turn("user", "again")],
    [turn("user", "q"), turn("assistant", "<think>\nlast thoughts\n</think>\n\nlast answer")],
    [turn("system", "one"), turn("system", "two"), turn("user", "x")],
    [turn("developer", "one"), turn("user", "x")],
]

RICH = [
    {"messages": [turn("user", "How is the weather?")], "tools": [WEATHER]},
    {"messages": [turn("system", "Be kind."), turn("user", "How late is it?")], "tools": [WEATHER, CLOCK]},
    {
        "messages": [
            turn("system", "Be kind."),
            turn("user", "How is the weather?"),
            turn("assistant", "", tool_calls=[call("weather", {"place": "Zürich", "days": 2, "rain": True, "share": None})]),
            turn("tool", "It \"rains\".", tool_call_id="abcdef123"),
            turn("assistant", "It rains."),
            turn("user", "Thanks"),
        ],
        "tools": [WEATHER],
    },
    {
        "messages": [
            turn("user", "Two things"),
            turn("assistant", "Let me see.", tool_calls=[call("weather", {"place": "<here>"}), call("clock", {}, "123456789")]),
            turn("tool", "one", tool_call_id="abcdef123"),
            turn("tool", "two", tool_call_id="123456789"),
        ],
        "tools": [WEATHER, CLOCK],
    },
    {
        "messages": [
            turn("user", "Text as arguments"),
            turn("assistant", None, tool_calls=[call("weather", "{\"place\": \"x\"}")], reasoning_content="I think."),
            turn("tool", {"degrees": 20.5, "words": ["sun", "wind"]}, tool_call_id="abcdef123"),
        ],
        "tools": [WEATHER],
    },
    {"messages": [turn("user", "x"), turn("assistant", "y", reasoning_content="why\n")], "tools": []},
    {"messages": [turn("user", [{"type": "text", "text": " Look "}, {"type": "image"}, {"type": "text", "text": "here"}])]},
    {"messages": [turn("user", "x")], "enable_thinking": False},
    {"messages": [turn("user", "x")], "enable_thinking": True, "builtin": ["interpreter", "search", "maps"]},
    {"messages": [turn("user", "x")], "tools": [CLOCK], "tools_in_user_turn": False, "date": "26 Jul 2024"},
    {"messages": [], "tools": [CLOCK]},
]

CONVERSATIONS = [{"messages": messages} for messages in PLAIN] + RICH
