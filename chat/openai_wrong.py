"""What is wrong with a request in OpenAI's manner: always with the field's name in `param`."""

from chat.checks import Refused


def wrong(param: str, words: str, *, code: str = "invalid_value") -> Refused:
    """A field that cannot be read (400)."""
    return Refused.because(400, code, f"{param}: {words}" if param else words, param=param or None)


def unsupported(param: str, words: str = "This is not supported here.") -> Refused:
    """A field that would change the answer, and that Omni2 cannot honour (400)."""
    return wrong(param, words, code="unsupported_parameter")
