"""The chat page and the API of conversations. The two ask routes are below Django: see omni2.asgi and chat.endpoint."""

from django.urls import URLPattern, URLResolver, path

from chat.api_conversations import ConversationExport, Conversations, OneConversation
from chat.pages import page_urls

api_urls: list[URLPattern | URLResolver] = [
    path("api/v1/conversations", Conversations.as_view(), name="conversations"),
    path("api/v1/conversations/<str:session_id>", OneConversation.as_view(), name="one-conversation"),
    path("api/v1/conversations/<str:session_id>/export", ConversationExport.as_view(), name="conversation-export"),
]
urlpatterns = api_urls + page_urls
