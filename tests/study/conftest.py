import pytest
from tiny import COMMAND, LOOPED

from mythos_lite.study.run import execute


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("CI", "1")


@pytest.fixture(scope="session")
def record():
    return execute(LOOPED, COMMAND)[0]
