"""Our greedy text beside llama.cpp's, token by token, over HTTP.

Where the two part, the log-probabilities of both candidates in both engines are kept, and the comparison goes on
behind llama.cpp's token, so that every position is compared in the same context.
Must never call a parting allowed in which an engine does not tell both candidates apart by less than `NEAR`.
"""

import json
import urllib.error
import urllib.request

# Of two candidates whose log-probabilities are nearer than this either may come.
NEAR = 0.05


def ask(door, prompt, tokens):
    """Our answer: token ids, and for each of them {text: log-probability} of the likeliest."""
    url, model = door
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "logprobs": 5}
    body |= {"ignore_eos": True, "return_token_ids": True}
    request = urllib.request.Request(
        f"{url}/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            choice = json.load(answer)["choices"][0]
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"caravan answered {error.code}: {error.read(2000).decode(errors='replace')}") from error
    return choice["token_ids"], choice["logprobs"]["top_logprobs"], choice["logprobs"]["tokens"]


def gap(first, second):
    return None if first is None or second is None else abs(first - second)


def parting(number, position, ours, theirs):
    """What both engines think of both candidates. `ours`: (text, {text: logprob}); `theirs`: candidates."""
    (text, top), chosen = ours, theirs[0]
    in_theirs = {name: logprob for _, name, logprob in reversed(theirs)}
    gaps = gap(top.get(text), top.get(chosen[1])), gap(chosen[2], in_theirs.get(text))
    near = all(value is not None and value < NEAR for value in gaps)
    return {
        "prompt": number,
        "position": position,
        "ours": text,
        "theirs": chosen[1],
        "gap_ours": gaps[0],
        "gap_theirs": gaps[1],
        "allowed": near,
    }


def compare(door, answers):
    """Partings of our answers from theirs."""
    partings = []
    for number, answer in enumerate(answers, 1):
        prompt, tokens = answer["prompt"], answer["tokens"]
        done = 0
        while done < len(tokens):
            ids, tops, texts = ask(door, prompt + tokens[:done], len(tokens) - done)
            if len(ids) != len(tokens) - done:
                raise RuntimeError(f"{len(ids)} tokens came instead of {len(tokens) - done}")
            same = next((i for i, pair in enumerate(zip(ids, tokens[done:])) if pair[0] != pair[1]), None)
            if same is None:
                break
            at = done + same
            partings.append(parting(number, at, (texts[same], tops[same]), answer["top"][at]))
            done = at + 1
    return partings


def markdown(partings, positions, peer):
    alike = positions - len(partings)
    allowed = sum(one["allowed"] for one in partings)
    first = {one["prompt"] for one in partings}
    text = [
        f"{positions} positions, the same token at {alike}; {len(partings)} partings in {len(first)} prompts, "
        f"{allowed} of them between candidates nearer than {NEAR} in both engines."
    ]
    if partings:
        text += ["", f"| prompt | position | caravan | {peer} | distance in caravan | in {peer} |", "| --- | --- | --- | --- | --- | --- |"]
    shown = lambda value: "not among the likeliest" if value is None else f"{value:.3f}"
    for one in partings:
        cells = [one["prompt"], one["position"], f"`{one['ours']!r}`", f"`{one['theirs']!r}`"]
        cells += [shown(one["gap_ours"]), shown(one["gap_theirs"])]
        text.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(text)
