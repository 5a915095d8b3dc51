"""The `messages` of POST /v1/chat/completions in the model's terms, each checked on the way.

Text goes through as it is. Images go through as data URLs or https links: whether the model takes them is its own
affair. A link is handed on; for the providers that take none pydantic-ai fetches it, never from a private address.
"""

import binascii
import json
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic_ai.messages import (
    BinaryContent,
    ImageUrl,
    ModelMessage,
    ModelRequest,
    ModelRequestPart,
    ModelResponse,
    ModelResponsePart,
    SystemPromptPart,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserContent,
    UserPromptPart,
)

from chat.brought import ClientResult
from chat.openai_wrong import unsupported, wrong
from chat.threads import spoken

IMAGES = ("image/png", "image/jpeg", "image/webp", "image/gif")
CALL_ID_CHARACTERS = 200
NO_WORDS = "(no words)"


@dataclass(slots=True)
class Spoken:
    """What was said, as it is gathered message by message."""

    messages: list[ModelMessage] = field(default_factory=list)
    before: list[str] = field(default_factory=list)
    """the words up to the model's last one, by which the dialogue is known again (chat.threads)"""
    since: list[str] = field(default_factory=list)
    """the words after it"""
    question: str = ""
    """the user's last words"""
    results: list[ClientResult] = field(default_factory=list)
    """of the client's tools, since the model's last word"""
    has_images: bool = False
    awaited: dict[str, str] = field(default_factory=dict)
    """calls of the model's last word that have no result yet: the tool by the call's id"""
    awaited_at: str = ""

    def ask(self, *parts: ModelRequestPart) -> None:
        """Said to the model. What stands together goes together: some providers want all results in one message."""
        last = self.messages[-1] if self.messages else None
        if isinstance(last, ModelRequest):
            last.parts = [*last.parts, *parts]
        else:
            self.messages.append(ModelRequest(parts=list(parts)))

    def nothing_awaited(self) -> None:
        """Raises Refused when calls of the model have no results."""
        if self.awaited:
            ids = ", ".join(self.awaited)
            raise wrong(self.awaited_at, f"Each of these calls needs a message of role tool after it: {ids[:200]}")


def read_messages(given: Any) -> Spoken:
    """All that was said. Raises Refused (400)."""
    if given is None:
        raise wrong("messages", "They are missing.", code="missing_required_parameter")
    if not isinstance(given, list) or not given:
        raise wrong("messages", "A list of at least one message is needed.")
    said = Spoken()
    for number, message in enumerate(given):
        where = f"messages[{number}]"
        if not isinstance(message, dict):
            raise wrong(where, "An object is needed.")
        _READERS.get(str(message.get("role")), _unknown)(said, message, where)
    said.nothing_awaited()
    if not said.messages or isinstance(said.messages[-1], ModelResponse):
        raise wrong("messages", "The last message has to be one for the model, not of it.")
    said.question = said.question.strip() or NO_WORDS
    return said


def _system(said: Spoken, message: dict[str, Any], where: str) -> None:
    said.nothing_awaited()
    text = _text(message.get("content"), f"{where}.content")
    said.question = said.question or text
    said.ask(SystemPromptPart(text))


def _user(said: Spoken, message: dict[str, Any], where: str) -> None:
    said.nothing_awaited()
    content = message.get("content")
    if isinstance(content, str):
        said.question = content
        said.ask(UserPromptPart(content))
    else:
        parts = [_part(part, at) for part, at in _parts(content, f"{where}.content")]
        said.has_images = said.has_images or not all(isinstance(part, str) for part in parts)
        said.question = "\n".join(part if isinstance(part, str) else "[image]" for part in parts)
        # one text is a text: not every server takes lists
        said.ask(UserPromptPart(parts[0] if len(parts) == 1 and isinstance(parts[0], str) else parts))
    said.since.append(f"user {said.question}")


def _assistant(said: Spoken, message: dict[str, Any], where: str) -> None:
    said.nothing_awaited()
    content = message.get("content")
    text = "" if content is None else _text(content, f"{where}.content")
    parts: list[ModelResponsePart] = [TextPart(text)] if text else []
    said.awaited_at = f"{where}.tool_calls"
    for number, call in enumerate(_calls(message, where)):
        part = _call(call, f"{where}.tool_calls[{number}]")
        if part.tool_call_id in said.awaited:
            raise wrong(f"{where}.tool_calls[{number}].id", "Two calls have the same id.")
        said.awaited[part.tool_call_id] = part.tool_name
        parts.append(part)
    if parts:
        said.messages.append(ModelResponse(parts=parts))
    said.before += [*said.since, spoken(text, said.awaited)]
    said.since, said.results = [], []


def _tool(said: Spoken, message: dict[str, Any], where: str) -> None:
    call_id = message.get("tool_call_id")
    if not isinstance(call_id, str) or call_id not in said.awaited:
        raise wrong(f"{where}.tool_call_id", "It has to name a call of the assistant's message before it.")
    tool = said.awaited.pop(call_id)
    text = _text(message.get("content"), f"{where}.content")
    said.results.append(ClientResult(tool, call_id, text))
    said.ask(ToolReturnPart(tool, text, call_id))


def _unknown(said: Spoken, message: dict[str, Any], where: str) -> None:
    if message.get("role") == "function":
        raise unsupported(f"{where}.role", "Functions were replaced by tools.")
    raise wrong(f"{where}.role", "system, developer, user, assistant or tool is needed.")


_READERS = {"system": _system, "developer": _system, "user": _user, "assistant": _assistant, "tool": _tool}


# --- parts of a message --------------------------------------------------------------------------


def _calls(message: dict[str, Any], where: str) -> Sequence[Any]:
    if message.get("function_call") is not None:
        raise unsupported(f"{where}.function_call", "Functions were replaced by tools.")
    calls = message.get("tool_calls")
    if calls is None:
        return ()
    if not isinstance(calls, list):
        raise wrong(f"{where}.tool_calls", "A list is needed.")
    return calls


def _call(call: Any, where: str) -> ToolCallPart:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or call.get("type", "function") != "function":
        raise wrong(where, "A call of the type function is needed.")
    call_id, name, arguments = call.get("id"), function.get("name"), function.get("arguments")
    if not isinstance(call_id, str) or not 0 < len(call_id) <= CALL_ID_CHARACTERS:
        raise wrong(f"{where}.id", f"A string of at most {CALL_ID_CHARACTERS} characters is needed.")
    if not isinstance(name, str) or not name:
        raise wrong(f"{where}.function.name", "A name is needed.")
    if isinstance(arguments, dict):
        arguments = json.dumps(arguments, ensure_ascii=False)
    if arguments is not None and not isinstance(arguments, str):
        raise wrong(f"{where}.function.arguments", "A string is needed.")
    return ToolCallPart(name, arguments or "{}", call_id)


def _parts(content: Any, where: str) -> list[tuple[dict[str, Any], str]]:
    if not isinstance(content, list) or not content:
        raise wrong(where, "A string, or a list of parts, is needed.")
    found = [(part, f"{where}[{number}]") for number, part in enumerate(content)]
    for part, at in found:
        if not isinstance(part, dict):
            raise wrong(at, "An object is needed.")
    return found


def _text(content: Any, where: str) -> str:
    """A message that can only be text."""
    if isinstance(content, str):
        return content
    texts = []
    for part, at in _parts(content, where):
        text = part.get("refusal") if part.get("type") == "refusal" else part.get("text")
        if part.get("type") not in ("text", "refusal") or not isinstance(text, str):
            raise wrong(at, "Only text is possible here.")
        texts.append(text)
    return "\n".join(texts)


def _part(part: dict[str, Any], where: str) -> UserContent:
    kind = part.get("type")
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise wrong(f"{where}.text", "A string is needed.")
        return str(part["text"])
    if kind == "image_url":
        image = part.get("image_url")
        if not isinstance(image, dict) or not isinstance(image.get("url"), str):
            raise wrong(f"{where}.image_url.url", "A link is needed.")
        if image.get("detail") not in (None, "auto", "low", "high"):
            raise wrong(f"{where}.image_url.detail", "auto, low or high is needed.")
        detail = {"detail": image["detail"]} if image.get("detail") else None
        return _image(image["url"], detail, f"{where}.image_url.url")
    raise unsupported(f"{where}.type", "Only text and image_url are supported.")


def _image(url: str, detail: dict[str, Any] | None, where: str) -> UserContent:
    if url.startswith("https://"):
        return ImageUrl(url=url, vendor_metadata=detail)
    head, comma, data = url.partition(",")
    media_type = head.removeprefix("data:").removesuffix(";base64")
    if not comma or head != f"data:{media_type};base64" or media_type not in IMAGES:
        raise wrong(where, f"An https link, or a base64 data URL of {', '.join(IMAGES)}, is needed.")
    try:
        content = b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise wrong(where, "This is not base64.") from None
    return BinaryContent(data=content, media_type=media_type, vendor_metadata=detail)
