"""/api/schema/ (OpenAPI 3, JSON or YAML) and /api/docs/ (to read and try, without any other server).

Both are open to everybody: they tell how to ask, not what is stored.
"""

from typing import Any, cast

from django.urls import path
from drf_spectacular.renderers import (
    OpenApiJsonRenderer,
    OpenApiJsonRenderer2,
    OpenApiYamlRenderer,
    OpenApiYamlRenderer2,
)
from drf_spectacular.utils import extend_schema
from drf_spectacular.views import SCHEMA_KWARGS, SpectacularAPIView, SpectacularSwaggerSplitView
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from omni2.rest import JSONRenderer


class _Open(APIView):
    """For everybody: no credential is looked at, so none can be wrong. Errors are JSON here too."""

    authentication_classes = []
    permission_classes = []
    http_method_names = ["get", "head"]

    def finalize_response(self, request: Any, response: Any, *args: Any, **kwargs: Any) -> Any:
        if response.exception:
            request.accepted_renderer, request.accepted_media_type = JSONRenderer(), "application/json"
        return super().finalize_response(request, response, *args, **kwargs)


class ApiSchema(_Open, SpectacularAPIView):
    """JSON unless YAML is asked for (`?format=yaml`)."""

    renderer_classes = [OpenApiJsonRenderer2, OpenApiJsonRenderer, OpenApiYamlRenderer, OpenApiYamlRenderer2]

    @extend_schema(**SCHEMA_KWARGS, summary="This description, as OpenAPI 3")
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        return cast(Response, super().get(request, *args, **kwargs))  # type: ignore[no-untyped-call]


class ApiDocs(_Open, SpectacularSwaggerSplitView):
    """Swagger UI out of the sidecar package; its script comes by an URL of its own, as our CSP demands."""

    url_name = "api-schema"


urlpatterns = [
    path("api/schema/", ApiSchema.as_view(), name="api-schema"),
    path("api/docs/", ApiDocs.as_view(), name="api-docs"),
]
