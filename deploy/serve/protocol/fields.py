"""Keys that other servers serve and this one does not: which values change nothing, and what is said of every other.

Sources: OpenAI's parameters as its Python client 3.57 lists them; vLLM's as guidellm 0.8.1, whose stand-in for a server knows them, does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import PydanticCustomError

UNSERVED = "unserved"  # the type of the error; its context names the key


@dataclass(frozen=True)
class Unserved:
    """A key that is understood, and not served.

    Attributes:
        why: what this server does not do, as the middle of a sentence.
        values: that change nothing.
        kind: types of which every value changes nothing, such as a hint for a cache.
        when: whether a value changes nothing in this request.
        kept: a value that is taken goes on to the request.
    """

    why: str
    values: tuple[Any, ...] = ()
    kind: tuple[type, ...] = ()
    when: Callable[[Any, Mapping[str, Any]], bool] = lambda value, request: False
    kept: bool = False

    def takes(self, value: Any, request: Mapping[str, Any]) -> bool:
        """Whether the value changes nothing."""
        return type(value) in self.kind or any(_same(value, neutral) for neutral in self.values) or self.when(value, request)

    def refusal(self, key: str) -> str:
        """What a client is told."""
        if self.kind:
            return f"{key} changes nothing here, but {self.why}."
        shown = " or ".join(json.dumps(value) for value in self.values)
        return f"{key} is not supported by this server: {self.why}. Leave it out{f', or send {shown}' if shown else ''}."


def without_neutral(table: Mapping[str, Unserved], given: Mapping[str, Any]) -> dict[str, Any]:
    """A request without the keys of the table and without nulls, which mean the same as absent.

    Raises:
        PydanticCustomError: a key asks for something.
    """
    present = {key: value for key, value in given.items() if value is not None}
    for key, value in present.items():
        if key in table and not table[key].takes(value, present):
            raise refused(key, table[key].refusal(key))
    return {key: value for key, value in present.items() if key not in table or table[key].kept}


def refused(key: str, said: str) -> PydanticCustomError:
    """An error of one key of an object, in our words."""
    return PydanticCustomError(UNSERVED, "{said}", {"said": said, "key": key})


def _same(value: Any, neutral: Any) -> bool:
    numbers = (int, float)
    if type(value) in numbers and type(neutral) in numbers:
        return bool(value == neutral)
    return type(value) is type(neutral) and bool(value == neutral)


def _is_chat(request: Mapping[str, Any]) -> bool:
    return "messages" in request


def _biases_nothing(value: Any, request: Mapping[str, Any]) -> bool:
    return isinstance(value, dict) and all(_same(bias, 0) for bias in value.values())


def _within_the_limit(value: Any, request: Mapping[str, Any]) -> bool:
    """Where the end is ignored, the answer has as many tokens as it may."""
    limit = request.get("max_completion_tokens", request.get("max_tokens"))
    return request.get("ignore_eos") is True and type(value) is int and type(limit) is int and 0 <= value <= limit


_NO_TOOLS = "tools are not called here"
_NO_PENALTY = "tokens are drawn without further penalties"
_NO_SAMPLER = "of samplers there are temperature, top_p and top_k"
_NO_BEAMS = "answers are sampled, not searched for"
_NO_GRAMMAR = "answers are not held to a form"
_ONE_FORM = "special tokens are left out of the text, and a stop string too"
_HINT = "it must be a text"

REQUEST: dict[str, Unserved] = {
    # OpenAI's
    "best_of": Unserved("answers are not ranked", (1,), when=lambda value, request: type(value) is int and value == request.get("n")),
    "echo": Unserved("the prompt is not repeated", (False,)),
    "suffix": Unserved("a text is continued, not filled in", ("",)),
    "presence_penalty": Unserved(_NO_PENALTY, (0,)),
    "frequency_penalty": Unserved(_NO_PENALTY, (0,)),
    "logit_bias": Unserved("logits are not biased", ({},), when=_biases_nothing),
    "tools": Unserved(_NO_TOOLS, ([],)),
    "tool_choice": Unserved(_NO_TOOLS, ("none", "auto")),
    "parallel_tool_calls": Unserved(_NO_TOOLS, (True, False)),
    "functions": Unserved(_NO_TOOLS, ([],)),
    "function_call": Unserved(_NO_TOOLS, ("none", "auto")),
    "response_format": Unserved(_NO_GRAMMAR, ({"type": "text"},)),
    "modalities": Unserved("answers are text", (["text"],)),
    "audio": Unserved("answers are text"),
    "prediction": Unserved("no answer is predicted by the client"),
    "web_search_options": Unserved("the network is not searched"),
    "moderation": Unserved("nothing is moderated"),
    "store": Unserved("answers are not kept", (False,)),
    "metadata": Unserved("it must be an object", kind=(dict,)),
    "service_tier": Unserved("there is one tier", ("auto", "default")),
    "verbosity": Unserved("the model decides how much it writes", ("medium",)),
    "reasoning_effort": Unserved("the model decides how much it reasons", ("none", "medium")),
    "user": Unserved(_HINT, kind=(str,)),
    "safety_identifier": Unserved(_HINT, kind=(str,)),
    "prompt_cache_key": Unserved(_HINT, kind=(str,)),
    "prompt_cache_retention": Unserved(_HINT, kind=(str,)),
    "prompt_cache_options": Unserved("it must be an object", kind=(dict,)),
    # vLLM's
    "repetition_penalty": Unserved("a penalty is that of the model's folder", (1,), kept=True),  # 1 switches that one off
    "min_p": Unserved(_NO_SAMPLER, (0,)),
    "min_tokens": Unserved("an answer may end at once", (0,), when=_within_the_limit),
    "length_penalty": Unserved(_NO_BEAMS, (1,)),
    "early_stopping": Unserved(_NO_BEAMS, (False,)),
    "use_beam_search": Unserved(_NO_BEAMS, (False,)),
    "stop_token_ids": Unserved("stop takes texts, and special tokens by their text", ([],)),
    "bad_words": Unserved("no words are barred", ([],)),
    "allowed_token_ids": Unserved("no tokens are barred"),
    "prompt_logprobs": Unserved("the prompt's tokens are not scored"),
    "skip_special_tokens": Unserved(_ONE_FORM, (True,)),
    "spaces_between_special_tokens": Unserved(_ONE_FORM, (True, False)),
    "include_stop_str_in_output": Unserved(_ONE_FORM, (False,)),
    "add_special_tokens": Unserved(
        "the tokenizer puts its own tokens around a prompt, and the template around a conversation",
        when=lambda value, request: value is not _is_chat(request) and type(value) is bool,
    ),
    "add_generation_prompt": Unserved("the assistant speaks next", (True,)),
    "continue_final_message": Unserved("the assistant begins a turn of its own", (False,)),
    "chat_template": Unserved("the template is the model's own"),
    "chat_template_kwargs": Unserved("the template is the model's own", ({},)),
    "include_reasoning": Unserved("text is not divided", (True, False)),
    "documents": Unserved("the template is given messages only", ([],)),
    "truncate_prompt_tokens": Unserved("a prompt is not cut"),
    "guided_json": Unserved(_NO_GRAMMAR),
    "guided_regex": Unserved(_NO_GRAMMAR),
    "guided_choice": Unserved(_NO_GRAMMAR),
    "guided_grammar": Unserved(_NO_GRAMMAR),
    "structured_outputs": Unserved(_NO_GRAMMAR),
    "logits_processors": Unserved("code of clients does not run", ([],)),
    "return_token_ids": Unserved("answers are text", (False,)),
    "return_tokens_as_token_ids": Unserved("answers are text", (False,)),
    "priority": Unserved("requests are answered in their order", (0,)),
    "request_id": Unserved(_HINT, kind=(str,)),
    "cache_salt": Unserved(_HINT, kind=(str,)),
    # llama.cpp's
    "cache_prompt": Unserved("it must be true or false", kind=(bool,)),
    "typical_p": Unserved(_NO_SAMPLER, (1,)),
    "mirostat": Unserved(_NO_SAMPLER, (0,)),
    "repeat_penalty": Unserved(_NO_PENALTY, (1,)),
    "grammar": Unserved(_NO_GRAMMAR, ("",)),
    "json_schema": Unserved(_NO_GRAMMAR, ({},)),
}

COMPLETION = REQUEST | {"top_logprobs": Unserved("completions say it by logprobs, a number", (0,))}

MESSAGE: dict[str, Unserved] = {
    "tool_calls": Unserved(_NO_TOOLS, ([],)),
    "function_call": Unserved(_NO_TOOLS),
    "tool_call_id": Unserved(_NO_TOOLS),
    "audio": Unserved("only text is read"),
    "refusal": Unserved("an assistant's words are its content", ("",)),
    "reasoning_content": Unserved("an assistant's words are its content", ("",)),
    "annotations": Unserved("only text is read", ([],)),
    "provider_specific_fields": Unserved("only text is read", ({}, {"refusal": None})),
    "cache_control": Unserved("it must be an object", kind=(dict,)),
}

PART: dict[str, Unserved] = {
    "cache_control": Unserved("it must be an object", kind=(dict,)),
    "prompt_cache_breakpoint": Unserved("it must be an object", kind=(dict,)),
    "annotations": Unserved("only text is read", ([],)),
}

STREAM: dict[str, Unserved] = {"include_obfuscation": Unserved("nothing is added to hide lengths", (False,))}
