"""People, tokens and the access log in the Django admin."""

import pytest
from django.contrib.auth.models import Permission
from django.test import Client

from omni2.accounts.access import record_access
from omni2.accounts.authenticate import authenticate_token
from omni2.accounts.models import AccessLog, User
from tests.people import PASSWORD, make_person

pytestmark = pytest.mark.django_db

PEOPLE, TOKENS, LOG, GROUPS = (
    f"/admin/{name}/" for name in ("accounts/user", "accounts/apitoken", "accounts/accesslog", "auth/group")
)


@pytest.fixture
def admin(ada) -> Client:
    client = Client()
    client.force_login(ada)
    return client


@pytest.fixture
def clerk(db) -> Client:
    """Staff who may edit people and nothing else."""
    user = make_person("clerk@example.com", "Clara Clerk", is_staff=True)
    names = ["add_user", "change_user", "view_user"]
    user.user_permissions.set(Permission.objects.filter(content_type__app_label="accounts", codename__in=names))
    client = Client()
    client.force_login(user)
    return client


def do(client: Client, page: str, action: str, *objects):
    return client.post(page, {"action": action, "_selected_action": [each.pk for each in objects]}, follow=True)


@pytest.mark.parametrize("page", [PEOPLE, TOKENS, LOG, GROUPS])
@pytest.mark.parametrize(("who", "welcome"), [("ada", True), ("olga", False), ("august", False), ("charlie", False)])
def test_only_the_superuser_sees_all(request, page: str, who: str, welcome: bool, token_of) -> None:
    user = request.getfixturevalue(who)
    token_of(user)
    record_access(actor=user, action="history_opened", subject_user_id="bob@example.com", detail={"reason": "x"})
    client = Client()
    client.force_login(user)
    answer = client.get(page, follow=True)
    assert answer.status_code == (200 if welcome else 403)


def test_staff_see_what_they_have_a_right_to(clerk) -> None:
    assert clerk.get(PEOPLE).status_code == 200
    for page in (TOKENS, LOG, GROUPS):
        assert clerk.get(page).status_code == 403


@pytest.mark.parametrize("query", ["?q=bob", "?is_active__exact=0", "?o=1", "?p=999", "?groups__id__exact=x", "?q=%C3"])
def test_the_list_of_people_stands_any_question(admin, bob, query: str) -> None:
    assert admin.get(PEOPLE + query, follow=True).status_code in (200, 400)


@pytest.mark.parametrize(
    "page",
    [
        f"{PEOPLE}?email=%00",
        f"{PEOPLE}%00/change/",
        f"{PEOPLE}{10**30}/change/",
        f"{PEOPLE}x/password/",
        f"{TOKENS}?state=%00",
        f"{TOKENS}?state=x&q=%ff",
        f"{LOG}?action=%00",
        f"{LOG}?created_at__year=x",
        f"{LOG}?created_at__year=99999",
        f"{LOG}{10**30}/change/",
        f"{GROUPS}?q=%00",
    ],
)
def test_no_address_breaks_it(admin, page: str) -> None:
    assert admin.get(page, follow=True).status_code in (200, 400, 404)


def test_it_makes_a_person(admin) -> None:
    fields = {"email": "New@Example.com", "name": "New", "usable_password": "false"}
    answer = admin.post(f"{PEOPLE}add/", fields)
    assert answer.status_code == 302, answer.context["errors"]
    user = User.objects.get(email="new@example.com")
    assert (user.name, user.has_usable_password()) == ("New", False)
    answer = admin.post(f"{PEOPLE}add/", {**fields, "email": "NEW@example.com"})
    assert "already exists" in answer.content.decode()


def test_an_address_is_not_edited(admin, bob) -> None:
    page = f"{PEOPLE}{bob.pk}/change/"
    assert admin.get(page).status_code == 200
    answer = admin.post(page, {"email": "robert@example.com", "name": "Robert", "is_active": "on"})
    assert answer.status_code == 302
    bob.refresh_from_db()
    assert (bob.email, bob.name) == ("bob@example.com", "Robert")


def test_nobody_is_deleted(admin, bob) -> None:
    assert admin.post(f"{PEOPLE}{bob.pk}/delete/", {"post": "yes"}).status_code == 403
    assert User.objects.filter(pk=bob.pk).exists()


def test_deactivating_stops_everything_and_activating_lets_in_again(admin, bob, token_of) -> None:
    token, browser = token_of(bob), Client()
    browser.force_login(bob)
    assert "Deactivated 1 of 1." in do(admin, PEOPLE, "deactivate", bob).content.decode()
    assert authenticate_token(token).problem == "inactive"
    assert browser.get("/account/tokens/").status_code == 302
    do(admin, PEOPLE, "activate", bob)
    assert authenticate_token(token).problem is None
    assert browser.get("/account/tokens/").status_code == 200


def test_nobody_deactivates_himself(admin, ada) -> None:
    do(admin, PEOPLE, "deactivate", ada)
    admin.post(f"{PEOPLE}{ada.pk}/change/", {"name": "Ada"})
    ada.refresh_from_db()
    assert (ada.is_active, ada.is_superuser, ada.is_staff, ada.name) == (True, True, True, "Ada")


def test_a_first_password_leaves_the_tokens_alone(admin, bob, token_of) -> None:
    token = token_of(bob)
    bob.set_unusable_password()
    bob.save()
    new = "a-new-password-1"
    answer = admin.post(f"{PEOPLE}{bob.pk}/password/", {"usable_password": "true", "password1": new, "password2": new})
    assert answer.status_code == 302
    bob.refresh_from_db()
    assert bob.check_password(new)
    assert authenticate_token(token).problem is None


def test_a_password_set_by_an_admin_ends_sessions_and_tokens(admin, bob, token_of) -> None:
    token, browser = token_of(bob), Client()
    browser.force_login(bob)
    new = "another battery staple"
    answer = admin.post(f"{PEOPLE}{bob.pk}/password/", {"usable_password": "true", "password1": new, "password2": new})
    assert answer.status_code == 302
    bob.refresh_from_db()
    assert bob.check_password(new)
    assert authenticate_token(token).problem == "revoked"
    assert browser.get("/account/tokens/").status_code == 302


def test_the_right_to_edit_people_does_not_grow_by_itself(clerk, ada, bob, token_of) -> None:
    token = token_of(ada)
    answer = clerk.post(
        f"{PEOPLE}{bob.pk}/change/", {"name": "Bob", "is_active": "on", "is_superuser": "on", "is_staff": "on"}
    )
    assert answer.status_code == 302
    new = {"usable_password": "true", "password1": PASSWORD + "!", "password2": PASSWORD + "!"}
    assert clerk.post(f"{PEOPLE}{ada.pk}/password/", new).status_code == 403
    assert clerk.post(f"{PEOPLE}{ada.pk}/change/", {"name": "Eve"}).status_code == 403
    do(clerk, PEOPLE, "deactivate", ada)
    do(clerk, PEOPLE, "revoke_tokens", ada)
    bob.refresh_from_db(), ada.refresh_from_db()
    assert (bob.is_superuser, bob.is_staff) == (False, False)
    assert (ada.is_active, ada.name, ada.check_password(PASSWORD)) == (True, "Ada Lovelace", True)
    assert authenticate_token(token).problem is None


def test_the_admin_revokes_tokens_and_never_shows_them(admin, bob, charlie, token_of) -> None:
    first, second, other = token_of(bob, name="laptop"), token_of(bob), token_of(charlie)
    pages = admin.get(TOKENS).content.decode() + admin.get(f"{TOKENS}{bob.tokens.last().pk}/change/").content.decode()
    assert "laptop" in pages
    assert all(secret not in pages for secret in (first, second, other))
    assert all(token.digest not in pages for token in bob.tokens.all())
    do(admin, TOKENS, "revoke", bob.tokens.get(name="laptop"))
    assert [authenticate_token(token).problem for token in (first, second, other)] == ["revoked", None, None]
    do(admin, PEOPLE, "revoke_tokens", bob)
    assert [authenticate_token(token).problem for token in (first, second, other)] == ["revoked", "revoked", None]


@pytest.mark.parametrize("state", ["usable", "expired", "revoked"])
def test_tokens_are_filtered_by_state(admin, bob, token_of, state: str) -> None:
    token_of(bob, name="is usable"), token_of(bob, name="is expired", days=-1), token_of(bob, name="is revoked")
    bob.tokens.filter(name="is revoked").revoke()
    content = admin.get(f"{TOKENS}?state={state}").content.decode()
    assert [name for name in ("usable", "expired", "revoked") if f"is {name}" in content] == [state]


def test_staff_with_the_right_manage_tokens(bob, token_of) -> None:
    user = make_person("keys@example.com", "Kim Keys", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="manage_tokens"))
    client, token = Client(), token_of(bob)
    client.force_login(user)
    do(client, TOKENS, "revoke", bob.tokens.get())
    assert authenticate_token(token).problem == "revoked"


def test_tokens_are_neither_made_nor_edited_nor_deleted_here(admin, bob, token_of) -> None:
    token_of(bob)
    one = f"{TOKENS}{bob.tokens.get().pk}/"
    assert admin.get(f"{TOKENS}add/").status_code == 403
    assert admin.post(f"{one}change/", {"name": "x"}).status_code == 403
    assert admin.post(f"{one}delete/", {"post": "yes"}).status_code == 403
    assert bob.tokens.usable().get().name == "test"


def test_the_access_log_is_read_and_nothing_else(admin, olga) -> None:
    line = record_access(
        actor=olga, action="watch_started", subject_user_id="bob@example.com", detail={"reason": "<b>why</b>"}
    )
    page = admin.get(LOG).content.decode()
    assert "watch started" in page
    assert "&lt;b&gt;why" in page
    assert admin.get(f"{LOG}?q=bob&action=watch_started").status_code == 200
    assert admin.get(f"{LOG}{line.pk}/change/").status_code == 200
    assert admin.get(f"{LOG}add/").status_code == 403
    assert admin.post(f"{LOG}{line.pk}/change/", {"actor": "x"}).status_code == 403
    assert admin.post(f"{LOG}{line.pk}/delete/", {"post": "yes"}).status_code == 403
    assert AccessLog.objects.get().actor == "olga@example.com"


def test_groups_are_edited_in_the_same_shell(admin, olga) -> None:
    group = olga.groups.get()
    page = admin.get(f"{GROUPS}{group.pk}/change/")
    assert page.status_code == 200
    assert "Can watch monitored users live" in page.content.decode()
    assert "Can add session" not in page.content.decode()
    assert "flows.watch" in admin.get(GROUPS).content.decode()
