"""What `import und3rstand_jax` offers: lazily imported names, error classes, the version."""

import importlib.metadata
import subprocess
import sys

import pytest

import und3rstand_jax as u3d
from und3rstand_jax.support import errors


@pytest.mark.parametrize("name", u3d.__all__)
def test_every_public_name_can_be_imported(name):
    assert getattr(u3d, name) is not None
    assert name in dir(u3d)


def test_every_error_is_public_and_a_user_error():
    kinds = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type)}
    assert kinds.keys() <= set(u3d.__all__)
    assert all(issubclass(kind, u3d.UserError) and issubclass(kind, ValueError) for kind in kinds.values())


def test_the_version_is_the_installed_distribution_s_or_says_that_there_is_none(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: f"{name} 1.2")
    assert u3d.__version__ == "und3rstand_jax 1.2"

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert u3d.__version__ == "0+unknown"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'und3rstand_jax' has no attribute 'load_backbon'"):
        _ = u3d.load_backbon


def test_the_package_alone_does_not_import_jax():
    command = "import sys, und3rstand_jax as u3d; u3d.UserError, u3d.__version__; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", command], check=True)


def test_the_library_says_nothing_where_no_logging_is_set_up():
    code = "import logging, und3rstand_jax; logging.getLogger('und3rstand_jax.loading').warning('heard')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert (run.stdout, run.stderr) == ("", "")
