"""Signing in and out, one's own password and tokens: pages and API.

The admin's own pages for these are answered here too, since this stands before it in omni2.urls.
"""

from django.urls import URLPattern, URLResolver, path

from omni2.accounts import api, pages

api_urls: list[URLPattern | URLResolver] = [
    path("api/v1/auth/token", api.SignInView.as_view(), name="auth_token"),
    path("api/v1/auth/tokens", api.TokensView.as_view(), name="auth_tokens"),
    path("api/v1/auth/tokens/<int:token_id>", api.TokenView.as_view(), name="auth_token_revoke"),
]
page_urls: list[URLPattern | URLResolver] = [
    path("login/", pages.SignIn.as_view(), name="sign_in"),
    path("logout/", pages.SignOut.as_view(), name="sign_out"),
    path("account/password/", pages.Password.as_view(), name="password"),
    path("account/tokens/", pages.Tokens.as_view(), name="tokens"),
    path("account/tokens/<int:token_id>/revoke/", pages.RevokeToken.as_view(), name="revoke_token"),
    path("admin/login/", pages.admin_sign_in),
    path("admin/logout/", pages.SignOut.as_view()),
    path("admin/password_change/", pages.admin_password),
]
urlpatterns = api_urls + page_urls
