# The web, or with another command the worker. Runs as nobody in particular, on a file system that
# cannot be written but for /tmp, which compose.yaml shows.
FROM python:3.13-slim AS build
COPY requirements.txt .
# "boto3" for amazon_ses and s3://, "confluent-kafka" for a queue_url.
ARG EXTRA_PACKAGES=""
RUN python -m venv /venv \
 && /venv/bin/pip install --no-cache-dir --disable-pip-version-check -r requirements.txt $EXTRA_PACKAGES

FROM python:3.13-slim
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOST=0.0.0.0
COPY --from=build /venv /venv
WORKDIR /app
COPY app.py gunicorn.conf.py integrationtest_online.py ./
COPY browsable_api browsable_api
COPY email_services email_services
COPY endpoints endpoints
COPY server server
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ.get(\"PORT\", 8000)}/healthz', timeout=2)"]
CMD ["gunicorn", "--config", "gunicorn.conf.py"]
