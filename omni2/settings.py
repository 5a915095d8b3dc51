"""Django settings of Omni2. Everything an operator may change comes from omni2.env."""

import secrets
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict

from omni2 import env

BASE_DIR: Path = env.BASE_DIR
DATA_DIR: Path = env.data_dir()

DEBUG = env.flag("DEBUG", default=False)
# `up` and the tests hand a kept key over; a bare `manage.py` command that signs nothing may do
# with a fresh one. A server without SECRET_KEY refuses to start: see omni2.asgi.
SECRET_KEY = env.secret_key() or "not-configured-" + secrets.token_urlsafe(32)
SECRET_KEY_CONFIGURED = bool(env.secret_key())
THIS_MACHINE = "localhost,127.0.0.1,[::1]"
ALLOWED_HOSTS = [host.strip() for host in env.text("ALLOWED_HOSTS", THIS_MACHINE).split(",") if host.strip()]
# always allowed, so that health checks on the machine itself need not know its public name
ALLOWED_HOSTS += THIS_MACHINE.split(",")
CSRF_TRUSTED_ORIGINS = [origin.strip() for origin in env.text("CSRF_TRUSTED_ORIGINS").split(",") if origin.strip()]

INSTALLED_APPS = [
    "unfold",
    "unfold.contrib.filters",
    "unfold.contrib.forms",
    "omni2.apps.LateAdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "channels",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "omni2.apps.Omni2AppConfig",
    "omni2.accounts.apps.AccountsConfig",
    "flows.apps.FlowsConfig",
    "monitoring.apps.MonitoringConfig",
    "chat.apps.ChatConfig",
]

MIDDLEWARE = [
    "omni2.middleware.security_headers",
    "omni2.middleware.no_nul_in_admin",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "omni2.urls"
ASGI_APPLICATION = "omni2.asgi.application"
AUTH_USER_MODEL = "accounts.User"
LOGIN_URL = "/login/"
LOGIN_REDIRECT_URL = "/"
LOGOUT_REDIRECT_URL = "/login/"
CSRF_FAILURE_VIEW = "omni2.errors.csrf_failure"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "omni2.shell.shell",
            ],
        },
    },
]

# --- PostgreSQL: everything of Omni2 lives in schema omni2, nothing in public ---------------
DATABASE_POOL_SIZE = env.database_pool_size()


def database_from_url(url: str) -> dict[str, Any]:
    """Django's connection settings for a libpq URL; host may be a socket folder."""
    try:
        parts = conninfo_to_dict(url)
    except ProgrammingError:
        # the text of the error would repeat the URL, and with it the password
        raise ImproperlyConfigured("DATABASE_URL is not a PostgreSQL URL") from None
    known = {"dbname", "user", "password", "host", "port"}
    options: dict[str, Any] = {key: value for key, value in parts.items() if key not in known}
    options.setdefault("connect_timeout", 5)
    options.setdefault("tcp_user_timeout", 10_000)
    # a server that vanished while we only wait for its answer: the system's own patience is two hours
    for name, value in (("keepalives_idle", 10), ("keepalives_interval", 5), ("keepalives_count", 3)):
        options.setdefault(name, value)
    # jit: all of our queries are short, and compiling one takes longer than the whole of it
    ours = "-c search_path=omni2 -c timezone=UTC -c jit=off"
    options["options"] = f"{parts.get('options') or ''} {ours}".strip()
    options["pool"] = {
        "min_size": 1,
        "max_size": DATABASE_POOL_SIZE,
        "timeout": 5,
    }
    return {
        "ENGINE": "omni2.postgres",
        "NAME": parts.get("dbname", "omni2"),
        "USER": parts.get("user", ""),
        "PASSWORD": parts.get("password", ""),
        "HOST": parts.get("host", ""),
        "PORT": str(parts.get("port", "")),
        "CONN_MAX_AGE": 0,
        # each is looked at before it is lent, without a round trip: omni2.postgres
        "CONN_HEALTH_CHECKS": False,
        "OPTIONS": options,
        # a pooler in transaction mode may read on from a cursor on another connection; nothing we read is long
        "DISABLE_SERVER_SIDE_CURSORS": True,
        "TEST": {"NAME": f"test_{parts.get('dbname', 'omni2')}"},
    }


# How long a statement of a web process may take; the persister and migrations take the time they need.
STATEMENT_TIMEOUT_S = env.integer("OMNI2_STATEMENT_TIMEOUT_S", 60, low=1, high=3600)
DATABASES = {"default": database_from_url(env.database_url() or "postgresql:///omni2")}
# Not BigAutoField-by-habit: ids of people and periods never leave the admin.
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# --- Redis ----------------------------------------------------------------------------------
REDIS_ENABLED = env.redis_enabled()
REDIS_URL = env.redis_url() or "redis://127.0.0.1:6379/0"
# With sentinels the URL has no say: they are asked which Redis is the primary.
REDIS_SENTINELS = env.redis_sentinels()
REDIS_SENTINEL_MASTER = env.redis_sentinel_master()
REDIS_SENTINEL_PASSWORD = env.redis_sentinel_password()
REDIS_PASSWORD = env.redis_password()
REDIS_DB = env.redis_database()
LAYER_HOST: str | dict[str, Any] = REDIS_URL
if REDIS_SENTINELS:
    LAYER_HOST = {
        "sentinels": REDIS_SENTINELS,
        "master_name": REDIS_SENTINEL_MASTER,
        "sentinel_kwargs": {"password": REDIS_SENTINEL_PASSWORD or None, "socket_connect_timeout": 1},
        "password": REDIS_PASSWORD or None,
        "db": REDIS_DB,
    }
# The layer carries control messages only (monitoring changed, right withdrawn), never checkpoints.
CHANNEL_LAYERS = (
    {
        "default": {
            "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
            "CONFIG": {"hosts": [LAYER_HOST], "prefix": "omni2-layer"},
        }
    }
    if REDIS_ENABLED
    else {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
)

# --- Chat and tracking ----------------------------------------------------------------------
LLM_MODEL = env.text("LLM_MODEL", "local")
LLM_BASE_URL = env.text("LLM_BASE_URL")
LLM_API_KEY = env.text("LLM_API_KEY")
# how often a model of the environment is asked at most, until a first token comes
LLM_ATTEMPTS = env.integer("LLM_ATTEMPTS", 2, low=1, high=10)
# Set by the supervisor for the model it runs itself; private port, a key of its own.
LOCAL_MODEL_URL = env.text("OMNI2_LOCAL_MODEL_URL")
LOCAL_MODEL_KEY = env.text("OMNI2_LOCAL_MODEL_KEY")
CAPTURE = env.choice("OMNI2_CAPTURE", "preview", ("full", "preview", "none"))
USAGE_TZ = env.text("OMNI2_USAGE_TZ", "UTC")
NOTICE = env.flag("OMNI2_NOTICE", default=False)
# The clock and the calculator that every model may use.
BUILTIN_TOOLS = env.flag("OMNI2_BUILTIN_TOOLS", default=True)
# Tool servers that are programs of this machine: whoever may configure one runs what he likes as this user.
STDIO_TOOLS = env.flag("OMNI2_STDIO_TOOLS", default=False)
# Requests one process works on at once; whoever comes beyond it is told to try again later.
MAX_TURNS = env.integer("OMNI2_MAX_TURNS", 1000, low=1, high=100_000)
# Open sockets of one process; whoever comes beyond it is told to try again later.
MAX_WATCHERS = env.integer("OMNI2_MAX_WATCHERS", 1000, low=1, high=100_000)

# --- Time, language, static ------------------------------------------------------------------
TIME_ZONE = "UTC"
USE_TZ = True
USE_I18N = False
DATE_FORMAT = "j M Y"
DATETIME_FORMAT = "j M Y H:i"
LANGUAGE_CODE = "en"
STATIC_URL = "/static/"
# only for `collectstatic`, where a proxy serves the files; else they are served from where they lie
STATIC_ROOT = env.text("STATIC_ROOT") or None
STATICFILES_DIRS = [BASE_DIR / "static"]
WHITENOISE_USE_FINDERS = True
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}

# --- Manners ---------------------------------------------------------------------------------
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
SESSION_ENGINE = "omni2.accounts.sessions"
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
CSRF_COOKIE_SAMESITE = "Lax"
HTTPS_ONLY = env.flag("OMNI2_HTTPS", default=False)
SESSION_COOKIE_SECURE = HTTPS_ONLY
CSRF_COOKIE_SECURE = HTTPS_ONLY
# proxies whose word about the client's address and scheme is believed, on every door: see omni2.proxies
TRUSTED_PROXIES = env.trusted_proxies()
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if HTTPS_ONLY else None
DATA_UPLOAD_MAX_MEMORY_SIZE = 1024 * 1024

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 10}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.NumericPasswordValidator"},
]

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["omni2.accounts.authenticate.ApiAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_RENDERER_CLASSES": ["omni2.rest.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["omni2.rest.AnyTypeJSONParser"],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "omni2.rest.AlwaysJSON",
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "omni2.errors.exception_handler",
    "UNAUTHENTICATED_USER": "django.contrib.auth.models.AnonymousUser",
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Omni2",
    "DESCRIPTION": "A self-hosted LLM chat endpoint that lets admins see a user's request happen.",
    "VERSION": "0.1.0",
    "SERVE_INCLUDE_SCHEMA": True,
    "POSTPROCESSING_HOOKS": ["drf_spectacular.hooks.postprocess_schema_enums", "omni2.schema.complete"],
    # the default would have the page ask a server of Swagger's whether the schema is valid
    "SWAGGER_UI_SETTINGS": {"deepLinking": True, "validatorUrl": None},
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
}

# --- Logs: lines or JSON, with the turn's id ---------------------------------------------------
LOG_FORMAT = env.choice("LOG_FORMAT", "text", ("text", "json"))
LOG_LEVEL = env.choice("LOG_LEVEL", "info", ("debug", "info", "warning", "error")).upper()
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "text": {"()": "omni2.logs.TextFormatter"},
        "json": {"()": "omni2.logs.JsonFormatter"},
    },
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": LOG_FORMAT}},
    "root": {"handlers": ["stderr"], "level": "WARNING"},
    "loggers": {
        name: {"handlers": ["stderr"], "level": LOG_LEVEL, "propagate": False}
        for name in ("omni2", "flows", "monitoring", "chat")
    },
}

UNFOLD = {
    "SITE_TITLE": "Omni2",
    "SITE_HEADER": "Omni2",
    "SITE_SYMBOL": "account_tree",
    "SITE_URL": "/",
    "SITE_FAVICONS": [{"rel": "icon", "type": "image/svg+xml", "href": "omni2.shell.favicon"}],
    "SHOW_HISTORY": True,
    "SHOW_VIEW_ON_SITE": False,
    "BORDER_RADIUS": "6px",
    # the accent is the blue of a passed check; static/css/omni2.css has the rest of the palette
    "COLORS": {
        "primary": {
            "50": "#eff6ff",
            "100": "#dbeafe",
            "200": "#bfdbfe",
            "300": "#93c5fd",
            "400": "#60a5fa",
            "500": "#60a5fa",
            "600": "#2563eb",
            "700": "#1d4ed8",
            "800": "#1e40af",
            "900": "#1e3a8a",
            "950": "#172554",
        },
        "base": {"700": "#2b3648", "800": "#1c2534", "900": "#0b0f17", "950": "#070a10"},
    },
    "SIDEBAR": {"show_search": False, "show_all_applications": False, "navigation": "omni2.shell.navigation"},
    "STYLES": ["omni2.shell.stylesheet"],
}
