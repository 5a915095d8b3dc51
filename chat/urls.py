"""The chat page. The two ask routes are below Django: see omni2.asgi and chat.endpoint."""

from chat.api_models import model_urls
from chat.pages import page_urls

urlpatterns = [*page_urls, *model_urls]
