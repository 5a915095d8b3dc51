"""Every URL of Omni2. The two ask routes and the sockets are below Django: see omni2.asgi."""

from django.contrib import admin
from django.urls import include, path

admin.autodiscover()

urlpatterns = [
    path("", include("omni2.health")),
    path("", include("omni2.pages")),
    path("", include("omni2.accounts.urls")),
    path("", include("flows.urls")),
    path("", include("monitoring.urls")),
    path("", include("chat.urls")),
    path("", include("omni2.api_docs")),
    path("admin/", admin.site.urls),
]
handler400 = "omni2.errors.bad_request"
handler403 = "omni2.errors.forbidden"
handler404 = "omni2.errors.not_found"
handler500 = "omni2.errors.server_error"
