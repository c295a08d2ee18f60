"""The five marked objects, made once."""

import pytest
from tampering_subjects import Bench, subject


@pytest.fixture(scope="session")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("tampering"))


@pytest.fixture(scope="session")
def subject_named(bench, shared):
    made = {}

    def get(name):
        if name not in made:
            made[name] = subject(name, bench, shared)
        return made[name]

    return get
