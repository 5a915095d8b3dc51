"""Keeping views under a name: the forms of the menu "Views", which work without a script.

Any page with filters in its address may offer them: `shown()` gives its template what
templates/flows/_views.html draws. Each view is its owner's alone; another's is not there.
"""

from typing import Any, cast

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.urls import URLPattern, URLResolver, path
from django.views.decorators.http import require_POST

from flows.saved_views import NAME_LENGTH_MAX, PAGES, SavedView, kept_query
from omni2.accounts.models import User

# so many stand beside the heading; all of them are in the menu
BESIDE_THE_HEADING = 4


def shown(user: User, page: str, query: str) -> dict[str, Any]:
    """What the menu of this page shows: the owner's views of it, and the filters that could be kept. One query."""
    views = list(SavedView.objects.filter(owner=user, page=page))
    return {
        "all": views,
        "first": views[:BESIDE_THE_HEADING],
        "page": page,
        "query": query,
        "current": next((view.pk for view in views if view.query == query and query), None),
        "name_length_max": NAME_LENGTH_MAX,
    }


@require_POST
@login_required
def keep(request: HttpRequest) -> HttpResponse:
    """Keep the page's filters under a name; a view of that name shows these from now on."""
    page, query = request.POST.get("page", ""), request.POST.get("query", "")
    try:
        view, is_new = SavedView.keep(cast(User, request.user), request.POST.get("name", ""), page, query)
    except ValidationError as problem:
        return _back(request, problem)
    said = "is kept" if is_new else "now shows these filters"
    messages.success(request, f"“{view.name}” {said}.")
    return HttpResponseRedirect(view.address)


@require_POST
@login_required
def rename(request: HttpRequest, view_id: int) -> HttpResponse:
    view = _own(request, view_id)
    try:
        view.rename(request.POST.get("name", ""))
    except ValidationError as problem:
        return _back(request, problem)
    messages.success(request, f"The view is called “{view.name}” now.")
    return _back(request)


@require_POST
@login_required
def delete(request: HttpRequest, view_id: int) -> HttpResponse:
    view = _own(request, view_id)
    view.delete()
    messages.success(request, f"The view “{view.name}” is deleted.")
    return _back(request)


def _own(request: HttpRequest, view_id: int) -> SavedView:
    return get_object_or_404(SavedView, owner=cast(User, request.user), pk=view_id)


def _back(request: HttpRequest, problem: ValidationError | None = None) -> HttpResponse:
    """To the page the form stood on, with what was wrong."""
    if problem is not None:
        messages.error(request, " ".join(problem.messages))
    page = request.POST.get("page", "")
    try:
        query = kept_query(request.POST.get("query", ""))
    except ValidationError:
        query = ""
    return HttpResponseRedirect((page if page in PAGES else PAGES[0]) + (f"?{query}" if query else ""))


view_urls: list[URLPattern | URLResolver] = [
    path("flows/views", keep, name="keep-view"),
    path("flows/views/<int:view_id>/rename", rename, name="rename-view"),
    path("flows/views/<int:view_id>/delete", delete, name="delete-view"),
]
