"""How DRF reads and writes: JSON in, whatever the Content-Type says; JSON out, whatever is accepted."""

from rest_framework.parsers import JSONParser
from rest_framework.renderers import JSONRenderer as DRFJSONRenderer


class JSONRenderer(DRFJSONRenderer):
    """JSON whatever the client accepts."""


class AnyTypeJSONParser(JSONParser):
    """Reads the body as JSON whatever its Content-Type says."""

    media_type = "*/*"
