"""For Django's own server: settings, addresses and the command in one file."""

import sys

import counting
from django.conf import settings
from django.core.management import execute_from_command_line
from django.http import HttpRequest, HttpResponse
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["*"],
    DEBUG=True,
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="not one",
)


def ready(request: HttpRequest) -> HttpResponse:
    return HttpResponse("ready")


def count(request: HttpRequest) -> HttpResponse:
    return HttpResponse(counting.count())


def draw(request: HttpRequest) -> HttpResponse:
    return HttpResponse(counting.draw())


urlpatterns = [path("", ready), path("count", count), path("draw", draw)]

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
