"""What the token API reads and writes."""

from datetime import UTC
from typing import Any

from rest_framework import serializers

from omni2.accounts.models import TOKEN_DAYS, TOKEN_DAYS_MAX, TOKEN_NAME_LENGTH_MAX, ApiToken

# Far above any password; hashing starts with a digest, so length costs nothing below this.
PASSWORD_LENGTH_MAX = 4096


class Text(serializers.CharField):
    """A JSON string; DRF's own field would also take numbers."""

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        return str(super().to_internal_value(data))


class WholeNumber(serializers.IntegerField):
    """A JSON number without fraction; DRF's own field would also take text."""

    def to_internal_value(self, data: Any) -> int:
        if isinstance(data, bool) or not isinstance(data, int):
            self.fail("invalid")
        return int(super().to_internal_value(data))


class Moment(serializers.DateTimeField):
    """2026-11-22T06:00:00.123456Z, also when the microseconds are nought."""

    def __init__(self, **options: Any) -> None:
        super().__init__(format="%Y-%m-%dT%H:%M:%S.%fZ", default_timezone=UTC, **options)


class SignInSerializer(serializers.Serializer[Any]):
    """`{"email", "password"}`. The address is not checked for its form: a wrong one is nobody's."""

    email = Text(max_length=255)
    password = Text(max_length=PASSWORD_LENGTH_MAX, trim_whitespace=False)


class NewTokenSerializer(serializers.Serializer[Any]):
    name = Text(max_length=TOKEN_NAME_LENGTH_MAX, default="", allow_blank=True, help_text="what it is for")
    expires_in_days = WholeNumber(min_value=1, max_value=TOKEN_DAYS_MAX, default=TOKEN_DAYS)


class TokenSerializer(serializers.ModelSerializer[ApiToken]):
    """A token as its owner sees it in a list: never its text, only how it begins."""

    created_at = Moment()
    expires_at = Moment()
    revoked_at = Moment(allow_null=True)
    last_used_at = Moment(allow_null=True, help_text="noted once a minute at most")

    class Meta:
        model = ApiToken
        fields = ["id", "name", "prefix", "created_at", "expires_at", "revoked_at", "last_used_at"]


class TokenListSerializer(serializers.Serializer[Any]):
    count = serializers.IntegerField()
    results = TokenSerializer(many=True)


class IssuedTokenSerializer(TokenSerializer):
    """The only answer that ever holds a token's text."""

    token = serializers.CharField(help_text="shown this once")

    class Meta(TokenSerializer.Meta):
        fields = [*TokenSerializer.Meta.fields, "token"]


class SignedInSerializer(serializers.Serializer[Any]):
    token = serializers.CharField(help_text="shown this once")
    expires_at = Moment()
