"""The front door: `/` leads to the first page its visitor may see."""

from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, URLResolver, path
from django.views.decorators.cache import never_cache

from omni2.shell import first_page


@never_cache
def home(request: HttpRequest) -> HttpResponse:
    return HttpResponseRedirect(first_page(request.user) if request.user.is_authenticated else "/login/")


urlpatterns: list[URLPattern | URLResolver] = [path("", home, name="home")]
