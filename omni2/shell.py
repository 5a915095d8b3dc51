"""The one shell around every page: navigation by what its reader may do.

Our own pages and the Django admin use the same templates (templates/shell.html and the overrides in
templates/unfold/); this module gives them what they show.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.templatetags.static import static
from django.utils.text import capfirst

# Admin pages by their model's label: where they stand, what they are called, their icon.
ADMIN_PLACES: dict[str, tuple[str, str, str]] = {
    "accounts.user": ("People", "Users", "group"),
    "monitoring.monitoreduser": ("People", "Monitored", "visibility"),
    "chat.userblock": ("People", "Blocks", "shield_person"),
    "chat.userlimits": ("People", "Limits", "speed"),
    "chat.languagemodel": ("Gateway", "Models", "neurology"),
    "chat.groupprompt": ("Gateway", "Group prompts", "edit_note"),
    "chat.toolserver": ("Gateway", "Tool servers", "build"),
    "chat.grouplimits": ("People", "Group limits", "groups_2"),
    "monitoring.omni2config": ("System", "Config", "tune"),
    "accounts.apitoken": ("System", "Tokens", "vpn_key"),
    "accounts.accesslog": ("System", "Access log", "policy"),
    "auth.group": ("System", "Groups", "groups"),
    "chat.conversation": ("System", "Conversations", "forum"),
    "chat.dailyusage": ("System", "Usage by day", "data_usage"),
    "flows.turn": ("System", "Turns", "checklist"),
    "flows.interactionflow": ("System", "Checkpoints", "account_tree"),
}
GROUPS = ("Flows", "Talk", "People", "Gateway", "System")


def stylesheet(request: HttpRequest) -> str:
    return static("css/omni2.css")


def favicon(request: HttpRequest) -> str:
    return static("img/omni2.svg")


def first_page(user: Any) -> str:
    """Where a signed-in visitor begins: the most telling page he may see."""
    if user.has_perm("flows.watch"):
        return "/live/"
    return "/flows/" if user.has_perm("flows.view") else "/chat/"


def navigation(request: HttpRequest) -> list[dict[str, Any]]:
    """Groups of links the reader may follow, in the order they are shown. No query beyond his permissions'."""
    user = getattr(request, "user", None)
    if user is None or not user.is_authenticated:
        return []
    links = [*_own_pages(user), *_admin_pages(request)]
    groups = [{"title": name, "items": [_item(request, link) for link in links if link[0] == name]} for name in GROUPS]
    return [group for group in groups if group["items"]]


Link = tuple[str, str, str, str]  # group, title, icon, address


def _own_pages(user: Any) -> Iterable[Link]:
    if user.has_perm("flows.watch"):
        yield "Flows", "Live", "sensors", "/live/"
    yield "Flows", "History" if user.has_perm("flows.view") else "My history", "history", "/flows/"
    if user.has_perm("flows.view"):
        yield "Flows", "Analytics", "insights", "/analytics/"
    if user.has_perm("flows.operate"):
        yield "Flows", "Ledger", "menu_book", "/ledger/"
    yield "Talk", "Chat", "chat", "/chat/"
    yield "Talk", "Usage" if user.has_perm("chat.view_dailyusage") else "My usage", "data_usage", "/usage/"


def _admin_pages(request: HttpRequest) -> Iterable[Link]:
    """What is registered in the admin and may be seen there; what has no place of its own stands under System."""
    if not admin.site.has_permission(request):
        return
    for model, page in sorted(admin.site._registry.items(), key=lambda entry: _rank(entry[0]._meta.label_lower)):
        if not page.has_view_or_change_permission(request):
            continue
        meta = model._meta
        place = ADMIN_PLACES.get(meta.label_lower, ("System", capfirst(str(meta.verbose_name_plural)), "database"))
        yield *place, f"/admin/{meta.app_label}/{meta.model_name}/"


def _rank(label: str) -> int:
    return list(ADMIN_PLACES).index(label) if label in ADMIN_PLACES else len(ADMIN_PLACES)


def _item(request: HttpRequest, link: Link) -> dict[str, Any]:
    _, title, icon, address = link
    return {"title": title, "icon": icon, "link": address, "active": request.path.startswith(address)}


@cache
def _looks() -> dict[str, Any]:
    """The part of the admin's look that is the same for everybody, read once from settings.UNFOLD."""
    site: Any = admin.site  # unfold's, which has put itself in the place of Django's
    request = HttpRequest()
    looks = ("SITE_TITLE", "SITE_HEADER", "SITE_SUBHEADER", "SITE_SYMBOL", "SITE_URL", "BORDER_RADIUS", "THEME")
    return {
        **{name.lower(): site._get_config(name, request) for name in looks},
        "colors": site._get_colors("COLORS", request),
        "styles": site._get_list("STYLES", request),
        "scripts": site._get_list("SCRIPTS", request),
        "site_favicons": site._get_favicons("SITE_FAVICONS", request),
        "is_nav_sidebar_enabled": True,
    }


def shell(request: HttpRequest) -> dict[str, Any]:
    """Context for every page. The admin's own pages bring the same names and theirs win.

    The navigation is worked out only by a template that draws it.
    """
    return {**_looks(), "shell_navigation": lambda: navigation(request)}
