"""Settings of Django, with a database of tasks."""

import os
from importlib.util import find_spec

SECRET_KEY = "of a test"
USE_TZ = True
INSTALLED_APPS = ["django_tasks_db", "asyncplumber.integrations.django.Announcements"]
if find_spec("django.tasks") is None:
    INSTALLED_APPS.insert(0, "django_tasks")
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ["DJANGO_FILE"],
        "OPTIONS": {"timeout": 20, "transaction_mode": "IMMEDIATE"},
    }
}
TASKS = {"default": {"BACKEND": "django_tasks_db.DatabaseBackend"}}
ASYNCPLUMBER = {"url": os.environ["ASYNCPLUMBER_URL"], "deadline": 3.0, "beat_interval": 0.5}
