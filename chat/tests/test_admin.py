"""The admin of chat: who may block, who may read, and that reading is noted."""

import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from django.contrib.auth.models import Group, Permission
from django.test import Client
from django.utils.html import strip_tags

from chat.models import Conversation, DailyUsage, GroupLimits, Message, TurnUsage, UserBlock, UserLimits
from omni2.accounts.models import AccessLog
from tests.people import PASSWORD, make_person

pytestmark = pytest.mark.django_db
PAGES = ("userblock", "userlimits", "dailyusage", "turnusage", "conversation")


@pytest.fixture
def browser_of() -> Any:
    def sign_in(user: Any) -> Client:
        browser = Client()
        assert browser.login(email=user.email, password=PASSWORD)
        return browser

    return sign_in


@pytest.fixture
def staff(db: None) -> Any:
    """May sign in to the admin, and was given every right of chat that can be given."""
    user = make_person("staff@example.com", "Stefan", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(content_type__app_label="chat"))
    return user


@pytest.fixture
def conversation(bob: Any) -> Conversation:
    made = Conversation.objects.create(session_id=uuid.uuid4(), user=bob, title="<b>bold</b> plans")
    said = "<script>alert(1)</script>"
    Message.objects.create(conversation=made, role="user", content=said, turn_id=uuid.uuid4())
    return made


def test_every_page_opens_for_a_superuser(ada: Any, bob: Any, browser_of: Any, conversation: Conversation) -> None:
    UserBlock.objects.create(user=bob, reason="why")
    UserLimits.objects.create(user=bob, requests_per_day=5, tokens_unlimited=True)
    day = datetime.now(UTC).date()
    DailyUsage.objects.create(user=bob, day=day)
    ids = {"turn_id": uuid.uuid4(), "session_id": uuid.uuid4(), "process_id": uuid.uuid4()}
    TurnUsage.objects.create(user=bob, day=day, **ids)
    browser = browser_of(ada)
    for page in PAGES:
        assert b"bob@example.com" in browser.get(f"/admin/chat/{page}/").content, page
    for kind in (UserBlock, UserLimits, DailyUsage, TurnUsage, Conversation):
        row = kind.objects.get()
        assert browser.get(f"/admin/chat/{kind._meta.model_name}/{row.pk}/change/").status_code == 200
    assert browser.get("/admin/chat/userblock/add/").status_code == 200
    listed = browser.get("/admin/chat/userlimits/").content.decode()
    assert "unlimited" in listed
    assert "8 (default)" in listed


def test_charlie_sees_none_of_it(charlie: Any, browser_of: Any) -> None:
    browser = browser_of(charlie)
    for page in PAGES:
        assert browser.get(f"/admin/chat/{page}/").status_code == 302


def test_conversations_are_for_superusers_whatever_rights_others_were_given(
    staff: Any, browser_of: Any, conversation: Conversation
) -> None:
    browser = browser_of(staff)
    assert browser.get("/admin/chat/conversation/").status_code == 403
    assert browser.get(f"/admin/chat/conversation/{conversation.pk}/change/").status_code == 403
    assert browser.get("/admin/chat/userblock/").status_code == 200
    assert not AccessLog.objects.filter(action="history_opened").exists()


def test_opening_a_conversation_is_noted_and_its_text_stays_text(
    ada: Any, browser_of: Any, conversation: Conversation
) -> None:
    browser = browser_of(ada)
    page = browser.get(f"/admin/chat/conversation/{conversation.pk}/change/").content.decode()
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page
    looked = AccessLog.objects.filter(action="history_opened").latest("id")
    assert (looked.actor, looked.subject_user_id) == ("ada@example.com", "bob@example.com")
    assert looked.detail["session_id"] == str(conversation.pk)
    listed = browser.get("/admin/chat/conversation/").content.decode()
    assert "<b>bold</b>" not in listed
    assert AccessLog.objects.filter(action="history_opened").count() == 2


def test_a_block_knows_who_blocked(ada: Any, bob: Any, browser_of: Any) -> None:
    form = {"user": bob.pk, "message": "Please call.", "reason": "why"}
    assert browser_of(ada).post("/admin/chat/userblock/add/", form).status_code == 302
    block = UserBlock.objects.get()
    assert (block.user, block.blocked_by, block.message) == (bob, ada, "Please call.")


def test_unlimited_must_have_something_to_lift(ada: Any, bob: Any, browser_of: Any) -> None:
    browser = browser_of(ada)
    every = {f"requests_per_{window}": "5" for window in ("minute", "day", "month")}
    nothing_left = [
        {**every, "requests_unlimited": "on"},
        {"turns_at_once": "3", "turns_unlimited": "on"},
        {"cost_usd_per_month": "-1"},
    ]
    for wrong in nothing_left:
        answer = browser.post("/admin/chat/userlimits/add/", {"user": bob.pk, **wrong})
        assert answer.status_code == 200
        assert len(answer.context["adminform"].form.errors) == 1
    assert not UserLimits.objects.exists()
    some = {"user": bob.pk, "requests_per_minute": "5", "requests_unlimited": "on"}
    assert browser.post("/admin/chat/userlimits/add/", some).status_code == 302
    assert (UserLimits.objects.get().requests_per_minute, UserLimits.objects.get().requests_per_day) == (5, None)


def test_the_form_shows_what_is_in_force_and_from_where(ada: Any, bob: Any, browser_of: Any, limits: Any) -> None:
    limits(requests_per_day=500, tokens_per_month=9000)
    group = Group.objects.create(name="<i>Research</i>")
    bob.groups.add(group)
    theirs = GroupLimits.objects.create(group=group, tokens_per_day=777_000, cost_unlimited=True)
    own = UserLimits.objects.create(user=bob, requests_per_minute=12)
    browser = browser_of(ada)
    shown = " ".join(strip_tags(browser.get(f"/admin/chat/userlimits/{own.pk}/change/").content.decode()).split())
    assert "Requests a minute: 12 (own; 0 used)" in shown
    assert f"imits of {bob.get_full_name()}" in shown
    assert "US dollars a month:" in shown
    assert "usd per" not in shown, "the fields have the names that the settings give them"
    assert "Tokens a day: 777,000 (group &lt;i&gt;Research&lt;/i&gt;; 0 used)" in shown
    assert "US dollars a day: no limit (group &lt;i&gt;Research&lt;/i&gt;; 0 used)" in shown
    assert "Tokens a month: 9,000 (default; 0 used)" in shown
    shown = " ".join(strip_tags(browser.get(f"/admin/chat/grouplimits/{theirs.pk}/change/").content.decode()).split())
    assert "Tokens a day: 777,000 (group)" in shown
    assert "Requests a day: 500 (default)" in shown
    listed = " ".join(strip_tags(browser.get("/admin/chat/grouplimits/").content.decode()).split())
    assert "777,000 a day" in listed
    form = browser.get("/admin/chat/grouplimits/add/")
    assert form.status_code == 200


@pytest.mark.parametrize("page", ["dailyusage", "turnusage", "conversation"])
def test_what_omni2_writes_is_only_read(page: str, ada: Any, bob: Any, browser_of: Any) -> None:
    assert browser_of(ada).get(f"/admin/chat/{page}/add/").status_code == 403
