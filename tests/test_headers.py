"""What every answer says about itself."""

import pytest
from django.test import Client

pytestmark = pytest.mark.django_db


def test_nobody_between_may_keep_an_answer_of_the_api(client: Client, bob: object, token_of: object) -> None:
    answer = client.get("/api/v1/turns", headers={"Authorization": f"Bearer {token_of(bob)}"})
    assert answer.status_code == 200
    assert answer["Cache-Control"] == "no-store"
    refused = client.get("/api/v1/turns")
    assert (refused.status_code, refused["Cache-Control"]) == (401, "no-store")


@pytest.mark.parametrize("path", ["/login/", "/api/v1/turns", "/nothing/here", "/healthz"])
def test_every_answer_has_the_content_security_policy(client: Client, path: str) -> None:
    policy = client.get(path)["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "'unsafe-inline'" not in policy.partition("script-src")[2].partition(";")[0]
