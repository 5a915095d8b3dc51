"""The chat page and the API of conversations. The two ask routes are below Django: see omni2.asgi and chat.endpoint."""

from chat.api_conversations import conversation_urls
from chat.pages import page_urls

urlpatterns = [*page_urls, *conversation_urls]
