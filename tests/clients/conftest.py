"""What all clients' tests share: where the cluster is, and what it serves."""

import os

import pytest


@pytest.fixture(scope="session")
def base_url():
    """Ends in /v1."""
    return os.environ["CARAVAN_BASE_URL"]


@pytest.fixture(scope="session")
def root_url(base_url):
    return base_url.removesuffix("/v1")


@pytest.fixture(scope="session")
def model(base_url):
    import json
    import urllib.request

    with urllib.request.urlopen(f"{base_url}/models") as answer:
        return json.load(answer)["data"][0]["id"]
