"""Tokens over HTTP: get one with a password, list, make and revoke one's own."""

from typing import cast

from django.utils.decorators import method_decorator
from django.views.decorators.cache import never_cache
from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework.exceptions import APIException, AuthenticationFailed, NotFound
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from omni2.accounts.authenticate import WWW_AUTHENTICATE, Identity
from omni2.accounts.models import ApiToken, User
from omni2.accounts.password import check_sign_in
from omni2.accounts.serializers import (
    IssuedTokenSerializer,
    NewTokenSerializer,
    SignedInSerializer,
    SignInSerializer,
    TokenListSerializer,
    TokenSerializer,
)
from omni2.accounts.throttle import TooManyTries

LISTED_AT_MOST = 500


class SignInThrottled(APIException):
    """429; DRF writes `wait` into Retry-After."""

    status_code = 429

    def __init__(self, problem: TooManyTries) -> None:
        super().__init__(str(problem), code=problem.code)
        self.wait = problem.retry_after_s


@method_decorator(never_cache, name="dispatch")
class SignInView(APIView):
    """E-mail and password in, a new token out. Needs no credential and ignores any that is sent."""

    authentication_classes = ()
    permission_classes = ()

    def get_authenticate_header(self, request: Request) -> str:
        return WWW_AUTHENTICATE

    @extend_schema(
        operation_id="auth_token",
        auth=[],
        request=SignInSerializer,
        responses={
            200: SignedInSerializer,
            401: OpenApiResponse(description="`invalid_credentials`: the same for unknown and for inactive people"),
            429: OpenApiResponse(description="`too_many_tries`, with Retry-After"),
        },
    )
    def post(self, request: Request) -> Response:
        wanted = SignInSerializer(data=request.data)
        wanted.is_valid(raise_exception=True)
        try:
            user = check_sign_in(request, **wanted.validated_data)
        except TooManyTries as problem:
            raise SignInThrottled(problem) from None
        if user is None:
            raise AuthenticationFailed("Wrong e-mail address or password.", code="invalid_credentials")
        token, text = ApiToken.objects.issue(user, name="made with the password")
        return Response(SignedInSerializer({"token": text, "expires_at": token.expires_at}).data)


@method_decorator(never_cache, name="dispatch")
class TokensView(APIView):
    """One's own tokens."""

    @extend_schema(operation_id="auth_tokens_list", responses={200: TokenListSerializer})
    def get(self, request: Request) -> Response:
        """The newest 500, also those that are over."""
        tokens = list(cast(User, request.user).tokens.all()[:LISTED_AT_MOST])
        return Response({"count": len(tokens), "results": TokenSerializer(tokens, many=True).data})

    @extend_schema(operation_id="auth_tokens_make", request=NewTokenSerializer, responses={201: IssuedTokenSerializer})
    def post(self, request: Request) -> Response:
        """A new token. One that was made with a token does not outlive it."""
        wanted = NewTokenSerializer(data=request.data)
        wanted.is_valid(raise_exception=True)
        identity = cast(Identity, request.auth)
        token, text = ApiToken.objects.issue(
            cast(User, request.user),
            name=wanted.validated_data["name"],
            days=wanted.validated_data["expires_in_days"],
            not_after=identity.expires_at,
        )
        return Response({**TokenSerializer(token).data, "token": text}, status=201)


class TokenView(APIView):
    """One of one's own tokens."""

    @extend_schema(operation_id="auth_tokens_revoke", request=None, responses={204: None})
    def delete(self, request: Request, token_id: int) -> Response:
        """Revoke it, at once and for good; again is no error. 404 for another's as for an unknown one."""
        tokens = ApiToken.objects.filter(user=cast(User, request.user), pk=token_id)
        if not tokens.exists():
            raise NotFound("No such token.")
        tokens.revoke()
        return Response(status=204)
