"""What a client brings along that keeps the dialogue itself, as those of OpenAI's API do: all that was said, its own
tools, and how it wants to be answered. Read by chat.openai_request, taken up by chat.turn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pydantic_ai.messages import ModelMessage

from chat.llm import Wishes
from chat.threads import Thread


class ClientResult(NamedTuple):
    """What a tool of the client answered."""

    tool: str
    call_id: str
    text: str


@dataclass(frozen=True, slots=True)
class Brought:
    """The dialogue of a client, in the model's terms."""

    messages: Sequence[ModelMessage]
    wishes: Wishes
    thread: Thread
    results: Sequence[ClientResult] = ()
    """of its tools, since the model's last word"""
    no_tools: bool = False
    """it wants none"""
    stream: bool = False
    include_usage: bool = False

    @property
    def heard(self) -> str:
        """What the model hears first: results of the client's tools; "" when it is the question itself."""
        return "\n".join(result.text for result in self.results)

    @property
    def takes_server_tools(self) -> bool:
        """A client with tools of its own is not offered any others."""
        return not (self.wishes.tools or self.no_tools)
