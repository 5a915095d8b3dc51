"""What a client brings along that keeps the dialogue itself, as those of OpenAI's API do: all that was said, its own
tools, and how the model should answer. Made by chat.openai_request, put into the dialogue by chat.turn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from pydantic_ai.messages import ModelMessage, ModelRequest, SystemPromptPart
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.output import OutputObjectDefinition
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolDefinition

from chat.llm import INSTRUCTIONS, ChatModel, Dialogue, ModelFailed
from chat.threads import Thread

JSON_OBJECT = OutputObjectDefinition({"type": "object"})


class ClientResult(NamedTuple):
    """What a tool of the client answered."""

    tool: str
    call_id: str
    text: str


@dataclass(frozen=True, slots=True)
class Brought:
    """The dialogue of a client, in the model's terms."""

    messages: Sequence[ModelMessage]
    thread: Thread
    tools: Sequence[ToolDefinition] = ()
    results: Sequence[ClientResult] = ()
    """of its tools, since the model's last word"""
    settings: ModelSettings = field(default_factory=ModelSettings)
    output: OutputObjectDefinition | None = None
    """how the answer has to look; JSON_OBJECT: any object"""
    no_tools: bool = False
    """the client wants none to be used"""
    has_images: bool = False
    stream: bool = False
    include_usage: bool = False

    @property
    def heard(self) -> str:
        """What the model hears first: results of the client's tools, else "" for the question itself."""
        return "\n".join(result.text for result in self.results)

    def put_into(self, dialogue: Dialogue) -> None:
        """Let this be what is said to the model. What an admin told the model to be still comes first; Omni2's own
        plain instructions do not, and neither does its memory. Raises ModelFailed for what this model does not
        offer."""
        model = dialogue.model
        self._demand(model)
        ordered = dialogue.instructions
        dialogue.instructions = None
        dialogue.messages = list(self.messages)
        if ordered and ordered != INSTRUCTIONS:
            dialogue.messages.insert(0, ModelRequest(parts=[SystemPromptPart(ordered)]))
        dialogue.model = replace(model, settings=_both(model.settings, self.settings))
        tools = [] if self.no_tools else list(self.tools) or list(dialogue.parameters.function_tools)
        dialogue.parameters = _parameters(tools, self.output)

    def _demand(self, model: ChatModel) -> None:
        profile: Mapping[str, Any] = model.model.profile
        if self.tools and not model.takes_tools:
            raise ModelFailed("tools_not_supported", f"tools: the model {model.name} cannot call any.")
        if self.has_images and not profile.get("supports_image_input", True):
            raise ModelFailed("images_not_supported", f"messages: the model {model.name} takes no images.")
        if self.output is None:
            return
        ability = "supports_json_object_output" if self.output is JSON_OBJECT else "supports_json_schema_output"
        if not profile.get(ability):
            raise ModelFailed("format_not_supported", f"response_format: the model {model.name} does not offer this.")


def _both(own: ModelSettings, asked: ModelSettings) -> ModelSettings:
    """The client's word goes before the admin's, but nobody gets a longer answer than an admin allows."""
    both: ModelSettings = {**own, **asked}
    if "max_tokens" in own and "max_tokens" in asked:
        both["max_tokens"] = min(own["max_tokens"], asked["max_tokens"])
    return both


def _parameters(tools: list[ToolDefinition], output: OutputObjectDefinition | None) -> ModelRequestParameters:
    if output is None:
        return ModelRequestParameters(function_tools=tools)
    if output is JSON_OBJECT:
        # without a template: OpenAI's API too leaves it to the client to say in words what it wants
        return ModelRequestParameters(
            function_tools=tools, output_mode="prompted", output_object=output, prompted_output_template=False
        )
    return ModelRequestParameters(function_tools=tools, output_mode="native", output_object=output)
