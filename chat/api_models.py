"""GET /api/v1/models: what the caller may name when he asks."""

from django.urls import path
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from chat.catalogue import models_for
from omni2.schema import ERROR

NAMES = ("name", "description", "is_default", "takes_tools")


class ModelSerializer(serializers.Serializer):  # type: ignore[type-arg]
    """A model the caller may use."""

    name = serializers.CharField(help_text="what `model` of a question may be")
    description = serializers.CharField()
    is_default = serializers.BooleanField(help_text="it answers when a question names none")
    takes_tools = serializers.BooleanField()


class ModelsSerializer(serializers.Serializer):  # type: ignore[type-arg]
    models = ModelSerializer(many=True)


class Models(APIView):
    """The catalogue, as far as the caller may use it."""

    @extend_schema(responses={200: ModelsSerializer, 401: ERROR, 503: ERROR})
    def get(self, request: Request) -> Response:
        """The models the caller may use, by name."""
        offered = models_for(request.user)
        return Response({"models": [{name: each[name] for name in NAMES} for each in offered]})


model_urls = [path("api/v1/models", Models.as_view(), name="models")]
